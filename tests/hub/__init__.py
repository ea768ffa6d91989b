"""The mirror's Hub made to misbehave for the real client: accounts and gated models, faults on command, a record.

`with MisbehavingHub([model], gated={model.repo_id}, accounts={"hf_ada": Account("ada")}) as hub:` and then
`hub.misbehave("model.safetensors", Cut(after=1000), times=1)`.
"""

from __future__ import annotations

from tests.hub.faults import Cut, Delay, IgnoreRange, OtherDate, Portal, Redirect, Stall, Status, WrongBytes
from tests.hub.gate import Account
from tests.hub.misbehaving import MisbehavingHub, Order, Record
from tests.hub.tiny_model import big_file, serve_folder, tiny_model
from tests.hub.well_behaved import HubServer

__all__ = [
    "Account",
    "Cut",
    "Delay",
    "HubServer",
    "IgnoreRange",
    "MisbehavingHub",
    "Order",
    "OtherDate",
    "Portal",
    "Record",
    "Redirect",
    "Stall",
    "Status",
    "WrongBytes",
    "big_file",
    "serve_folder",
    "tiny_model",
]
