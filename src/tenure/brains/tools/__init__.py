"""What a brain can do in its agent's office: one catalogue, for every brain and for programs in the office (MCP)."""

from tenure.brains.tools.catalogue import OfficeTools
from tenure.brains.tools.tool import Arguments, Call, Tool

__all__ = ["Arguments", "Call", "OfficeTools", "Tool"]
