"""Does every malformed reference table end in one line that names file, row and column?"""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ghostsim.accuracy.report import accuracy
from ghostsim.errors import TableError

HEADER = "probe,part,framework,q_heads,kv_heads,head_dim,kv_dtype,batch,kv_len,warm_l2,value,unit,source"
ROW = "gpu_decode_attention,H100-SXM5-80GB,vllm 0.24.0,32,8,128,bfloat16,8,8192,no,100.49,us,test"
GEMM_HEADER = "probe,part,dtype,m,n,k,value,unit,source"
GEMM_ROW = "gpu_gemm,H100-SXM5-80GB,bfloat16,1,8192,8192,51.638,us,test"
DMA_HEADER = "probe,part,op,tasklets,transfer_bytes,value,unit,source"
DMA_ROW = "upmem_mram_dma,UPMEM_DPU_350MHz,copy,8,2048,2381.6,DPU cycles per loop iteration,test"


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def message(path: Path) -> str:
    with pytest.raises(TableError) as caught:
        accuracy([path])
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in text
    assert text.startswith(f"{path}:")
    return text.removeprefix(f"{path}:").strip()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROW.replace("gpu_decode_attention", "gpu_decode"), "3:1: probe: found 'gpu_decode'"),
        (ROW.replace("H100-SXM5-80GB", "H100-SXM9"), "3:2: part: found 'H100-SXM9'"),
        (ROW.replace("vllm 0.24.0", "llama.cpp 1"), "3:3: framework: found 'llama.cpp 1'"),
        (ROW.replace("vllm 0.24.0", ""), "3:3: framework: found ''"),
        (ROW.replace(",32,8,", ",thirty,8,"), "3:4: q_heads: found 'thirty'"),
        (ROW.replace(",32,8,", ",30,8,"), "3:4: q_heads: found '30', expected a multiple of kv_heads 8"),
        (ROW.replace(",32,8,", ",32,0,"), "3:5: kv_heads: found '0'"),
        (ROW.replace(",32,8,", ",32,8.5,"), "3:5: kv_heads: found '8.5', expected a whole number"),
        (ROW.replace("bfloat16", "int4"), "3:7: kv_dtype: found 'int4'"),
        (ROW.replace("8192", "-8192"), "3:9: kv_len: found '-8192'"),
        (ROW.replace("8192", "8_192"), "3:9: kv_len: found '8_192'"),
        (ROW.replace("8192", "9" * 40), "3:9: kv_len: found '999"),
        (ROW.replace(",no,", ",maybe,"), "3:10: warm_l2: found 'maybe'"),
        (ROW.replace("100.49", "nan"), "3:11: value: found 'nan'"),
        (ROW.replace("100.49", "inf"), "3:11: value: found 'inf'"),
        (ROW.replace("100.49", "1e999"), "3:11: value: found '1e999'"),
        (ROW.replace("100.49", ""), "3:11: value: found ''"),
        (ROW.replace("100.49", "0"), "3:11: value: found '0', expected a number above zero"),
        (ROW.replace(",us,", ",ms,"), "3:12: unit: found 'ms', expected 'us'"),
        (ROW + ",more", "3: row: found 14 fields, expected 13"),
        (ROW.removesuffix(",test"), "3: row: found 12 fields, expected 13"),
    ],
)
def test_bad_field_is_named_with_row_and_column(tmp_path, row, expected):
    assert message(written(tmp_path, HEADER, ROW, row)).startswith(expected)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (DMA_ROW.replace("copy", "swap"), "2:3: op: found 'swap'"),
        (DMA_ROW.replace("2048", "12"), "2:5: transfer_bytes: found '12'"),
        (DMA_ROW.replace("2048", "4096"), "2:5: transfer_bytes: found '4096'"),
        (DMA_ROW.replace("UPMEM_DPU_350MHz", "UPMEM"), "2:2: part: found 'UPMEM'"),
        (DMA_ROW.replace("DPU cycles per loop iteration", "ns"), "2:7: unit: found 'ns'"),
    ],
)
def test_bad_dma_field_is_named_with_row_and_column(tmp_path, row, expected):
    assert message(written(tmp_path, DMA_HEADER, row)).startswith(expected)


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (GEMM_HEADER.replace(",k,", ","), GEMM_ROW.replace(",8192,51", ",51"), "2: k: found no such column"),
        (GEMM_HEADER.replace(",unit", ""), GEMM_ROW.replace(",us", ""), "1: unit: found no such column"),
        (GEMM_HEADER + ",note", GEMM_ROW + ",x", "2:10: note: found a column that probe gpu_gemm does not have"),
        (GEMM_HEADER + ",m", GEMM_ROW + ",1", "1:10: m: found this column twice"),
    ],
)
def test_bad_header_is_named(tmp_path, header, row, expected):
    assert message(written(tmp_path, header, row)).startswith(expected)


@pytest.mark.parametrize(
    ("part", "meant"),
    [("H100_SXM5_80GB", "H100-SXM5-80GB"), ("MI300X-192", "MI300X-192GB"), ("l40s-48gb", "L40S-48GB"), ("", "")],
)
def test_the_nearest_name_of_a_gpu_is_suggested(tmp_path, part, meant):
    path = written(tmp_path, GEMM_HEADER, GEMM_ROW.replace("H100-SXM5-80GB", part))
    assert message(path).startswith(f"2:2: part: found {part!r}, expected a part that the models know, e.g. '{meant}")


def test_a_gpu_of_the_catalogue_goes_by_its_own_name_and_its_aliases(tmp_path):
    parts = ("h100_sxm", "H100-SXM5-80GB", "H100-SXM")
    rows = [GEMM_ROW.replace("H100-SXM5-80GB", part) for part in parts]
    found = accuracy([written(tmp_path, GEMM_HEADER, *rows)]).as_json()["probes"]["gpu_gemm"]["parts"]
    assert len({errors["bias"] for errors in found.values()}) == 1
    assert set(found) == set(parts)


def test_empty_file_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"")
    assert "found an empty file" in message(path)


def test_header_without_rows_is_refused(tmp_path):
    assert "found a header without rows" in message(written(tmp_path, HEADER))


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(bytes(range(256)))
    assert "expected a CSV text file" in message(path)


def test_text_with_zero_bytes_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(HEADER.encode() + b"\n\0\n")
    assert "found a binary file" in message(path)


def test_folder_is_refused(tmp_path):
    assert "found a folder" in message(tmp_path)


def test_missing_file_is_refused(tmp_path):
    assert "No such file" in message(tmp_path / "absent.csv")


def test_open_quote_is_refused(tmp_path):
    assert message(written(tmp_path, GEMM_HEADER, GEMM_ROW.replace("test", '"test'))).startswith("2: table: found")


def test_line_is_counted_across_quoted_line_breaks(tmp_path):
    broken = GEMM_ROW.replace("test", '"two\nlines"')
    path = written(tmp_path, GEMM_HEADER, broken, GEMM_ROW.replace("51.638", "x"))
    assert message(path).startswith("4:7: value: found 'x'")


def test_probes_may_share_a_table_if_foreign_columns_are_empty(tmp_path):
    header = "probe,part,dtype,m,n,k,op,tasklets,transfer_bytes,value,unit,source"
    gemm = "gpu_gemm,H100-SXM5-80GB,bfloat16,1,8192,8192,,,,51.638,us,test"
    dma = "upmem_mram_dma,UPMEM_DPU_350MHz,,,,,copy,8,2048,2381.6,DPU cycles per loop iteration,test"
    assert list(accuracy([written(tmp_path, header, gemm, dma)]).as_json()["probes"]) == ["gpu_gemm", "upmem_mram_dma"]


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{GEMM_HEADER}\r\n{GEMM_ROW}\r\n".encode())
    assert accuracy([path]).as_json()["probes"]["gpu_gemm"]["n"] == 1


def test_report_has_exactly_the_promised_keys(tmp_path):
    found = accuracy([written(tmp_path, HEADER, ROW, ROW.replace("H100-SXM5", "A100-SXM4"))]).as_json()
    keys = ["n", "skipped", "median", "p90", "max", "bias"]
    probe = found["probes"]["gpu_decode_attention"]
    assert list(found) == ["schema", "probes"]
    assert list(probe) == [*keys, "parts"]
    assert {part: list(errors) for part, errors in probe["parts"].items()} == {
        "H100-SXM5-80GB": keys,
        "A100-SXM4-80GB": keys,
    }
    assert (found["schema"], probe["n"], probe["skipped"]) == (1, 2, 0)
    json.dumps(found, allow_nan=False)


def test_statistics_are_relative_to_the_measurement_and_linear_in_rank(tmp_path):
    predicted = accuracy([written(tmp_path, DMA_HEADER, DMA_ROW)]).predictions[0].predicted
    factors = (0.5, 0.8, 1.0, 2.0)
    rows = [DMA_ROW.replace("2381.6", repr(predicted * factor)) for factor in factors]
    errors = [1 / factor - 1 for factor in factors]
    found = accuracy([written(tmp_path, DMA_HEADER, *rows)]).as_json()["probes"]["upmem_mram_dma"]
    assert math.isclose(found["median"], np.quantile(np.abs(errors), 0.5))
    assert math.isclose(found["p90"], np.quantile(np.abs(errors), 0.9))
    assert math.isclose(found["max"], 1.0)
    assert math.isclose(found["bias"], np.median(errors))


def test_predictions_file_holds_one_line_per_row(tmp_path):
    result = accuracy([written(tmp_path, GEMM_HEADER, GEMM_ROW, GEMM_ROW.replace(",1,", ",64,"))])
    with result.write_predictions(tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["line"] for row in rows] == ["2", "3"]
    assert float(rows[0]["value"]) == 51.638
    assert float(rows[1]["predicted"]) == result.predictions[1].predicted
    assert json.loads(rows[1]["conditions"])["m"] == "64"


def test_other_names_of_a_gpu_give_the_same_prediction(tmp_path):
    rows = [GEMM_ROW.replace("H100-SXM5-80GB", name) for name in ("H200", "H200-SXM-141GB")]
    first, second = accuracy([written(tmp_path, GEMM_HEADER, *rows)]).predictions
    assert first.predicted == second.predicted


DRAM_HEADER = "probe,part,record_bytes,n_records,mapping,page_policy,refresh,value,unit,source"
DRAM_ROW = "dram_gather,DDR4_3200AA_1ch_1R,64,16,CHUNK256,open,AllBank,100.0,ns,test"


def test_unmodelled_controller_settings_are_counted_as_skipped(tmp_path):
    path = written(tmp_path, DRAM_HEADER, DRAM_ROW, DRAM_ROW.replace("open", "timeout"))
    found = accuracy([path]).as_json()["probes"]["dram_gather"]
    assert (found["n"], found["skipped"]) == (1, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [("CHUNK256", "RoBaRaCoCh"), ("CHUNK256", "rochrabacobg"), ("open", "closed"), ("AllBank", "NoRefresh")],
)
def test_modelled_controller_settings_are_predicted(tmp_path, old, new):
    result = accuracy([written(tmp_path, DRAM_HEADER, DRAM_ROW.replace(old, new))])
    assert result.predictions[0].predicted > 0


def test_worst_rows_come_first(tmp_path):
    rows = [DMA_ROW.replace("2381.6", value) for value in ("2400", "1000", "3000")]
    result = accuracy([written(tmp_path, DMA_HEADER, *rows)])
    assert [each.measured.at.line for each in result.worst("upmem_mram_dma")] == [3, 4, 2]


def test_wrong_delimiter_is_named(tmp_path):
    path = written(tmp_path, GEMM_HEADER.replace(",", ";"), GEMM_ROW.replace(",", ";"))
    assert message(path).startswith("1: probe: found no such column")


def test_negative_value_is_named(tmp_path):
    assert message(written(tmp_path, GEMM_HEADER, GEMM_ROW.replace("51.638", "-5"))).startswith(
        "2:7: value: found '-5'"
    )


def test_table_of_skipped_rows_only_holds_no_nan(tmp_path):
    result = accuracy([written(tmp_path, DRAM_HEADER, DRAM_ROW.replace("CHUNK256", "other"))])
    json.dumps(result.as_json(), allow_nan=False)
    assert result.table().row_count == 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (DRAM_ROW.replace("DDR4", "DDR9"), "2:2: part: found 'DDR9_3200AA_1ch_1R'"),
        (DRAM_ROW.replace("DDR4", "DDR9").replace("open", "closed"), "2:2: part: found 'DDR9_3200AA_1ch_1R'"),
        (DRAM_ROW.replace(",64,", ",0,"), "2:3: record_bytes: found '0', expected a number from 1"),
        (DRAM_ROW.replace(",16,", ",1e3,"), "2:4: n_records: found '1e3', expected a whole number"),
    ],
)
def test_bad_dram_field_is_named_with_row_and_column(tmp_path, row, expected):
    assert message(written(tmp_path, DRAM_HEADER, row)).startswith(expected)


def test_any_name_is_a_machine_and_further_columns_are_ignored(tmp_path):
    header = "probe,part,read_fraction,load_GBps,max_GBps,idle_ns,value,unit,source,note"
    row = "memory_system_latency,My_machine,1.0,10.0,200.0,100.0,101.0,ns,test,x"
    assert list(accuracy([written(tmp_path, header, row)]).as_json()["probes"]["memory_system_latency"]["parts"]) == [
        "My_machine"
    ]


REFERENCE = Path(__file__).parents[2] / "hwmodels" / "reference"


@pytest.mark.parametrize(
    ("table", "median", "p90"),
    [
        ("gpu_decode_attention.csv", 0.06, 0.18),
        ("gpu_gemm.csv", 0.06, 0.18),
        ("upmem_mram_dma.csv", 0.05, 0.15),
    ],
)
def test_kernel_tables_meet_their_bars_on_every_part(table, median, p90):
    (probe,) = accuracy([REFERENCE / table]).as_json()["probes"].values()
    for errors in (probe, *probe["parts"].values()):
        assert errors["median"] <= median
        assert errors["p90"] <= p90


def test_a_long_field_is_cut_and_an_overflow_is_explained(tmp_path):
    assert len(message(written(tmp_path, DMA_HEADER, DMA_ROW.replace("2381.6", "9" * 5000)))) < 400
    huge = ROW.replace(",32,8,128,", f",{10**15},{10**15},{10**15},").replace(",8,8192,", f",{10**15},{10**15},")
    assert "expected a real shape" in message(written(tmp_path, HEADER, huge))
