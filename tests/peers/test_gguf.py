"""What gguf, of llama.cpp, computes, and the formats of mxsweep that compute the same."""

import pytest

from peers.rows import ROWS, Row, check, why_not

PEER = "gguf"
pytestmark = [pytest.mark.peers, pytest.mark.skipif(bool(why_not(PEER)), reason=why_not(PEER) or "")]


@pytest.mark.parametrize("row", [row for row in ROWS if row.peer == PEER], ids=lambda row: row.title)
def test_the_format_computes_what_the_peer_does(row: Row) -> None:
    check(row)
