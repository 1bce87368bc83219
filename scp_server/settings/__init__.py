"""Settings: what they are (`models`), where they come from (`load`), how they are shown (`show`)."""

from scp_server.settings.load import Problem, SettingsError, check_file, load_settings
from scp_server.settings.models import Settings
from scp_server.settings.show import to_mapping, to_toml

__all__ = ["Problem", "Settings", "SettingsError", "check_file", "load_settings", "to_mapping", "to_toml"]
