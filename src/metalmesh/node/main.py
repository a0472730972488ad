"""Entry of the node agent's process."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import TYPE_CHECKING

from metalmesh.node.agent import NodeAgent
from metalmesh.service import logs

if TYPE_CHECKING:
    from metalmesh.node.config import NodeConfig


def run_agent(config: NodeConfig) -> int:
    """Run the agent until it is asked to stop."""
    logs.configure(config.log_level, config.log_format)
    # at debug they tell every netlink message and every short-lived event loop
    for library in ("pyroute2", "asyncio"):
        logging.getLogger(library).setLevel(logging.WARNING)

    async def serve() -> None:
        agent = NodeAgent(config)
        gc.freeze()  # what imports made lives for ever
        await agent.run()

    asyncio.run(serve())
    return 0
