"""How the parts of a bundle are packed."""

import io
import zipfile

import numpy as np

from policies.archive import LARGE, pack, unpack


def test_large_members_are_deflated_where_it_pays() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(LARGE).astype(np.float32)
    rounded = (weights.view(np.uint32) & np.uint32(0xFFFF0000)).tobytes()
    members = {"weights": weights.tobytes(), "rounded": rounded, "small": b"0" * 1000}
    content = pack(members)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = {info.filename: info.compress_type for info in archive.infolist()}
        assert found == {"weights": zipfile.ZIP_STORED, "rounded": zipfile.ZIP_DEFLATED, "small": zipfile.ZIP_STORED}
        assert archive.getinfo("rounded").compress_size < 0.55 * len(rounded)
    assert unpack(io.BytesIO(content), lambda _: members) == members
    assert pack(members) == content
