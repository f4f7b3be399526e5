"""What a page reads of a file of features: values that are no numbers stay what they are, and are said."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swin_mim.errors import UserError
from swin_mim.evaluation.outputs.embeddings import pooled_table
from swin_mim.evaluation.overview.rows import read_rows


def test_features_that_are_not_finite_stay_so_beside_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    values[0], values[2, 1], values[3, 0] = np.nan, np.nan, np.inf
    known = {"image": pa.array(["a", "b", "c", "d"]), "error": pa.array(["broken", None, None, None], pa.string())}
    pq.write_table(pooled_table(0, known, {"embedding": values}), tmp_path / "features.parquet")
    rows = read_rows(tmp_path / "features.parquet")
    np.testing.assert_array_equal(rows.features, values[1:])
    with pytest.raises(UserError, match="of 'c', row 2, and those of 1 other image are not finite"):
        rows.check_finite()
    values[2, 1] = 1
    pq.write_table(pooled_table(0, known, {"embedding": values}), tmp_path / "features.parquet")
    with pytest.raises(UserError, match="of 'd', row 3, are not finite: "):
        read_rows(tmp_path / "features.parquet").check_finite()
    values[3, 0] = 1
    pq.write_table(pooled_table(0, known, {"embedding": values}), tmp_path / "features.parquet")
    read_rows(tmp_path / "features.parquet").check_finite()
