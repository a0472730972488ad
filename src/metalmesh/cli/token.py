"""``metalmesh token``: mint, list and revoke join tokens; void the tokens of a node."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from metalmesh.constants import JOIN_TOKEN_TTL_SECONDS, STATE_DIR
from metalmesh.controlplane.join_tokens import JoinTokens
from metalmesh.controlplane.revocations import Revocations

if TYPE_CHECKING:
    import argparse

    from metalmesh.pki.tokens import JoinRecord

DEFAULT_DIR = Path(STATE_DIR) / "tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="mint a one-time join token and print it")
    create.add_argument("--node", required=True, help="the only node that may use it")
    create.add_argument(
        "--ttl", type=int, default=JOIN_TOKEN_TTL_SECONDS, metavar="SECONDS", help="at most 3600"
    )
    show = actions.add_parser("list", help="list tokens that have not been used")
    show.add_argument("-o", "--output", choices=("text", "json"), default="text")
    revoke = actions.add_parser("revoke", help="remove a token before its use")
    revoke.add_argument("id", help="the part of the token before its dot")
    revoke_node = actions.add_parser("revoke-node", help="void every token a node has")
    revoke_node.add_argument("node", help="it must join again")
    for action in (create, show, revoke, revoke_node):
        action.add_argument(
            "--tokens-dir", type=Path, default=DEFAULT_DIR, help=f"default: {DEFAULT_DIR}"
        )


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    tokens = JoinTokens(args.tokens_dir)
    now = int(time.time())
    if args.action == "create":
        sys.stdout.write(tokens.create(args.node, now, args.ttl) + "\n")
    elif args.action == "revoke":
        tokens.revoke(args.id)
    elif args.action == "revoke-node":
        Revocations(args.tokens_dir).revoke(args.node, now)
    else:
        _list(tokens.list_unused(), now, as_json=args.output == "json")
    return 0


def _list(records: list[JoinRecord], now: int, *, as_json: bool) -> None:
    """Print what is known of each token; the secrets' hashes stay on disk."""
    if as_json:
        sys.stdout.write(json.dumps([_row(record, now) for record in records]) + "\n")
        return
    for record in records:
        left = record.expires_at - now
        state = f"expires in {left} s" if left > 0 else "expired"
        sys.stdout.write(f"{record.id}  {record.node}  {state}\n")


def _row(record: JoinRecord, now: int) -> dict[str, object]:
    return {
        "id": record.id,
        "node": record.node,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "expired": now >= record.expires_at,
    }
