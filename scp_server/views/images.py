"""What views of images have in common."""

from __future__ import annotations

from scp_server.views.fields import text
from scp_server.views.geometry import CoordinateSystem
from scp_server.views.instance import InstanceView


class ImageView(InstanceView):
    """Where an image lies, and where it comes from."""

    @property
    def coordinate_system(self) -> CoordinateSystem | None:
        """Which hand the axes of positions are like; None where it is not said."""
        found = text(self.header, 0x00082108)
        return CoordinateSystem(found) if found in set(CoordinateSystem) else None

    @property
    def image_origin(self) -> str:
        """Where the image comes from: `MACHINE`, `SYNTHETIC` or `AUGMENTED`. No place in it."""
        return text(self.header, 0x00080118)
