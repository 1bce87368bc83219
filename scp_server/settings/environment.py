"""Settings from the environment, from the files it names, and from systemd's credentials."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from scp_server.errors import ConfigurationError
from scp_server.settings.schema import Key, Kind, keys_of, sections_of

PREFIX = "SCP_SERVER_"
CREDENTIAL_PREFIX = "scp_server."
"""A systemd credential of this name and a dotted key after it is that setting: `scp_server.log.level`."""
MAX_FILE_BYTES = 65_536
"""Most bytes of one value that lies in a file."""

_SERVICE_LINK = re.compile(r"SCP_SERVER_(SERVICE_HOST|(SERVICE_PORT|PORT)(_[A-Z0-9_]+)?)")
_SERVICE_LINK_VALUE = re.compile(
    r"(tcp|udp)(://[\[\]0-9a-fA-F:.]+)?|[0-9]{1,5}|[0-9a-fA-F:.]+\.[0-9]+|[0-9a-fA-F:]+"
)


@dataclass(slots=True)
class Layer:
    """What one source of settings says: values by dotted key, where each came from, and what is wrong."""

    values: dict[str, object] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    """Source, key and text of each problem."""

    def nested(self) -> dict[str, Any]:
        """The values as tables in tables."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *tables, name = key.split(".")
            table = tree
            for part in tables:
                table = table.setdefault(part, {})
            table[name] = value
        return tree


def read_environment(model: type[BaseModel], environment: Mapping[str, str]) -> Layer:
    """Read the variables that begin with `SCP_SERVER_`, and the credentials where systemd passed some.

    `SCP_SERVER_X_FILE` names a file with the value of `SCP_SERVER_X`. A variable or credential with our
    prefix that is no setting is a problem; a variable wins over a credential.
    """
    layer = Layer()
    variables = {key.variable: key for key in keys_of(model).values()}
    for source, credential, value in _credentials(model, environment, layer):
        _set(layer, credential, source, value)
    seen: dict[str, str] = {}
    for name in sorted(environment):
        if not name.startswith(PREFIX) or _is_service_link(name, environment[name]):
            continue
        key = variables.get(name) or variables.get(name.removesuffix("_FILE"))
        if key is None:
            layer.problems.append((name, "", _unknown_variable(name, variables, model)))
        elif key.name in seen:
            layer.problems.append((name, key.name, f"is also given by {seen[key.name]}"))
        else:
            seen[key.name] = name
            text = environment[name] if name in variables else _file_text(environment[name], name, key, layer)
            if text is not None:
                _set(layer, key, f"environment {name}", text)
    return layer


class EnvironmentSource(PydanticBaseSettingsSource):
    """The environment as a source of pydantic-settings, with unknown variables as errors."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` reads all fields at once."""
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        layer = read_environment(self.settings_cls, os.environ)
        if layer.problems:
            raise ConfigurationError("\n".join(f"{source}: {text}" for source, _, text in layer.problems))
        return layer.nested()

    @property
    def settings_model(self) -> type[BaseSettings]:
        """The model whose fields are read."""
        return self.settings_cls


def parse_text(text: str, kind: Kind) -> object:
    """A value from its text; what does not look like its kind stays text, and the model says what is wrong.

    A list is JSON (`["a", "b"]`) or its items between commas; tables are a JSON list of objects.
    """
    stripped = text.strip()
    if kind is Kind.BOOLEAN:
        return _BOOLEANS.get(stripped.lower(), text)
    if kind is Kind.INTEGER and re.fullmatch(r"[+-]?[0-9]{1,30}", stripped):
        return int(stripped)
    if kind is Kind.NUMBER and re.fullmatch(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", stripped):
        return float(stripped)
    if kind is Kind.LIST:
        return _list_of(stripped)
    if kind is Kind.TABLES:
        return _list_of(stripped) if stripped.startswith("[") else text
    return text


_BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def _list_of(text: str) -> object:
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return [item.strip() for item in text.split(",")] if text else []


def _set(layer: Layer, key: Key, source: str, text: str) -> None:
    layer.values[key.name] = parse_text(text, key.kind)
    layer.sources[key.name] = source


def _credentials(
    model: type[BaseModel], environment: Mapping[str, str], layer: Layer
) -> Iterator[tuple[str, Key, str]]:
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(CREDENTIAL_PREFIX))
    except OSError as error:
        layer.problems.append(("CREDENTIALS_DIRECTORY", "", f"cannot be listed: {error.strerror}"))
        return
    keys = keys_of(model)
    for name in names:
        source = f"credential {name}"
        key = keys.get(name.removeprefix(CREDENTIAL_PREFIX))
        if key is None:
            layer.problems.append((source, "", "is no setting"))
            continue
        text = _file_text(str(Path(folder, name)), source, key, layer)
        if text is not None:
            yield source, key, text


def _file_text(path: str, source: str, key: Key, layer: Layer) -> str | None:
    """The text of a file without its last line end; None and a problem when it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"is longer than {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = f"{path} is not UTF-8 text"
    except ValueError as error:
        problem = f"{path} {error}"
    layer.problems.append((source, key.name, problem))
    return None


def _unknown_variable(name: str, variables: Mapping[str, Key], model: type[BaseModel]) -> str:
    section = name.removeprefix(PREFIX).lower().replace("__", ".")
    if section in sections_of(model):
        example = next(variable for variable in variables if variable.startswith(f"{name}__"))
        return f"is a whole section; name a key of it, such as {example}"
    close = difflib.get_close_matches(name, variables, n=1, cutoff=0.8)
    return f"is no setting; did you mean {close[0]}?" if close else "is no setting"


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable because a service happens to be called scp-server.

    SCP_SERVER_PORT=11112 is somebody's mistake, SCP_SERVER_PORT=tcp://10.0.0.1:11112 is a link.
    """
    if _SERVICE_LINK.fullmatch(name) is None:
        return False
    if name == "SCP_SERVER_PORT":
        return "://" in value
    return _SERVICE_LINK_VALUE.fullmatch(value) is not None
