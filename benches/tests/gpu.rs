//! `kvtier gpu` as scripts see it: the real binary, without a driver and with one that needs no GPU.
#![allow(clippy::expect_used, reason = "helpers of tests fail like tests")]

use std::path::Path;
use std::process::{Command, Output};

use kvtier_tests::fake_cuda::{FakeCuda, Variant};
use serde_json::Value;

/// A directory in which a process finds the fake driver under the name of the real one.
struct FakeDriver(tempfile::TempDir);

impl FakeDriver {
    fn new(variant: Variant) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let library = FakeCuda::library(variant);
        std::os::unix::fs::symlink(library, dir.path().join("libcuda.so")).expect("a link");
        Self(dir)
    }

    fn run(&self, args: &[&str], environment: &[(&str, &str)]) -> Output {
        kvtier(args, self.0.path(), environment)
    }
}

fn kvtier(args: &[&str], libraries: &Path, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvtier"));
    command.env_remove("KVTIER_COPY_METHOD").env_remove("KVTIER_COPY_CTAS");
    command.args(args).env("LD_LIBRARY_PATH", libraries).envs(environment.iter().copied());
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else")
}

/// Nothing was tried: code 3, the reason on standard error, nothing on standard output.
fn missing(output: &Output, reason: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains(reason), "{error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn without_a_driver_it_says_what_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    // A machine that has a driver finds it elsewhere: then there is nothing to be seen here.
    let broken = dir.path().join("libcuda.so");
    std::fs::write(&broken, "no library").expect("written");
    for name in ["libcuda.so.1", "libnvcuda.so"] {
        std::fs::copy(&broken, dir.path().join(name)).expect("copied");
    }
    for args in
        [&["gpu"][..], &["gpu", "info"], &["gpu", "check", "--quick"], &["gpu", "calibrate", "--json"]]
    {
        let output = kvtier(args, dir.path(), &[]);
        if output.status.code() != Some(0) {
            missing(&output, "no NVIDIA driver");
        } else {
            assert!(Path::new("/proc/driver/nvidia").exists(), "no driver, and yet {args:?} works");
        }
    }
}

#[test]
fn a_driver_that_is_too_old_and_one_without_gpus_are_refused() {
    let driver = FakeDriver::new(Variant::WithBatch);
    missing(&driver.run(&["gpu"], &[("KVTIER_FAKE_DRIVER", "12020")]), "kvtier needs 12.4");
    missing(&driver.run(&["gpu", "info"], &[("KVTIER_FAKE_DEVICES", "0")]), "CUDA_ERROR_NO_DEVICE");
    missing(&driver.run(&["gpu", "check", "--device", "1"], &[]), "there is no GPU 1");
    let oldest = driver.run(&["gpu", "info", "--json"], &[("KVTIER_FAKE_DRIVER", "12040")]);
    assert_eq!(json(&oldest)["driver"]["cuda"], "12.4");
}

#[test]
fn info_tells_of_the_driver_and_each_gpu() {
    let info = |variant, environment: &[(&str, &str)]| {
        let driver = FakeDriver::new(variant);
        let of_gpu = json(&driver.run(&["gpu", "info", "--json"], environment));
        assert_eq!(of_gpu, json(&driver.run(&["gpu", "--json"], environment)), "info is the default");
        of_gpu
    };
    let two = info(Variant::WithBatch, &[("KVTIER_FAKE_DEVICES", "2")]);
    assert_eq!(two["schema"], "kvtier.gpu.info/1");
    assert_eq!(two["driver"]["batch_copies"], true);
    let gpus = two["gpus"].as_array().expect("GPUs");
    assert_eq!(gpus.len(), 2);
    assert_eq!(
        (&gpus[1]["ordinal"], &gpus[1]["pci_bus_id"]),
        (&Value::from(1), &Value::from("0000:02:00.0"))
    );
    assert_eq!((&gpus[0]["capability"], &gpus[0]["bulk_copies"]), (&Value::from("9.0"), &Value::from(true)));
    let old = info(Variant::WithoutBatch, &[("KVTIER_FAKE_CAPABILITY", "80")]);
    assert_eq!(old["driver"]["batch_copies"], false);
    assert_eq!(old["gpus"][0]["bulk_copies"], false);
}

/// Cases that passed in a part and by what.
fn passed(report: &Value, part: &str, what: &str) -> u64 {
    let rows = report["rows"].as_array().expect("rows");
    let named =
        |row: &&Value| row["part"] == part && row["what"].as_str().is_some_and(|w| w.starts_with(what));
    rows.iter().filter(named).filter_map(|row| row["cases"].as_u64()).sum()
}

#[test]
fn check_passes_and_covers_every_method_and_kernel() {
    let driver = FakeDriver::new(Variant::WithBatch);
    let report = json(&driver.run(&["gpu", "check", "--quick", "--cases", "4", "--json"], &[]));
    assert_eq!((&report["schema"], &report["passed"]), (&"kvtier.gpu.check/1".into(), &true.into()));
    assert_eq!(report["failures"].as_array().map(Vec::len), Some(0));
    for method in ["auto", "engine-loop", "engine-batch"] {
        assert!(passed(&report, "copies", method) > 0, "{method}");
    }
    for method in ["kernel", "bulk", "staged"] {
        for ctas in [1, 2, 4] {
            assert!(passed(&report, "copies", &format!("{method} x{ctas}")) > 0, "{method} x{ctas}");
        }
    }
    assert!(passed(&report, "permutes", "kv_copy") >= 8);
    assert_eq!(passed(&report, "evidence", "kv_zero"), 4);
    for order in ["store behind a kernel", "load behind a kernel", "a kernel behind each layer"] {
        assert_eq!(passed(&report, "order", order), 12, "{order}, by every method");
    }
    assert_eq!(passed(&report, "order", "50 KB load behind"), 1);
    assert_eq!((passed(&report, "refusals", "9 wrong calls"), passed(&report, "leaks", "")), (1, 1));
}

#[test]
fn check_passes_on_an_older_gpu_with_an_older_driver() {
    let driver = FakeDriver::new(Variant::WithoutBatch);
    let environment = [("KVTIER_FAKE_CAPABILITY", "80"), ("KVTIER_FAKE_DRIVER", "12040")];
    let report =
        json(&driver.run(&["gpu", "check", "--quick", "--cases", "2", "--borrow", "--json"], &environment));
    assert_eq!((passed(&report, "copies", "bulk"), passed(&report, "copies", "engine-batch")), (0, 0));
    assert!(passed(&report, "copies", "kernel") > 0 && passed(&report, "copies", "staged") > 0);
    assert_eq!(passed(&report, "permutes", ""), 0, "only what borrows");
}

/// Whatever goes wrong, the check finds it, says so, and says how to see it again.
#[test]
fn check_finds_what_is_broken() {
    let driver = FakeDriver::new(Variant::WithBatch);
    let mut args = vec!["gpu", "check", "--quick", "--cases", "1"];
    for (broken, part, case) in [
        ("kv_copy", "copies", "kernel"),
        ("kv_copy_bulk", "copies", "bulk"),
        ("kv_zero", "evidence", "a drawn layout"),
        ("kv_digest_blocks", "evidence", "a drawn layout"),
        ("cuMemcpyBatchAsync", "copies", "engine-batch"),
    ] {
        // The rest of the check would find nothing else.
        if part == "copies" {
            args.push("--borrow");
        }
        let output = driver.run(&args, &[("KVTIER_FAKE_BREAK", broken)]);
        args.truncate(5);
        assert_eq!(output.status.code(), Some(1), "{broken}: {}", text(&output.stderr));
        let told = text(&output.stdout);
        let failures: Vec<&str> = told.lines().filter(|line| line.starts_with("FAILED: ")).collect();
        let found = |line: &&str| line.starts_with(&format!("FAILED: {part}, ")) && line.contains(case);
        assert!(failures.iter().any(found), "{broken}: {told}");
        assert!(told.contains("  again: kvtier gpu check --seed 1 --cases 1 --quick"), "{broken}: {told}");
    }
}

/// A stand-in for compute-sanitizer that writes down what it is asked and finds what it is told to find.
#[test]
fn check_runs_itself_under_the_sanitizer() {
    let driver = FakeDriver::new(Variant::WithBatch);
    let dir = tempfile::tempdir().expect("a directory");
    let (script, asked) = (dir.path().join("compute-sanitizer"), dir.path().join("asked"));
    let run = |finds: &str| {
        let text =
            format!("#!/bin/sh\necho \"$@\" >>{}\ncase $2 in {finds}) exit 9;; esac\n", asked.display());
        std::fs::write(&script, text).expect("written");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, executable).expect("executable");
        let path = format!("{}:/bin:/usr/bin", dir.path().display());
        let args = ["gpu", "check", "--quick", "--cases", "1", "--borrow", "--seed", "5", "--sanitizer"];
        driver.run(&args, &[("PATH", &path)])
    };
    assert_eq!(run("none").status.code(), Some(0));
    let lines = std::fs::read_to_string(&asked).expect("it was asked");
    let tools: Vec<&str> = lines.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(tools, ["memcheck", "racecheck"]);
    assert!(
        lines.lines().all(|line| line.contains("gpu check --quick") && line.ends_with("--seed 5")),
        "{lines}"
    );
    let found = run("racecheck");
    assert_eq!(found.status.code(), Some(1));
    assert!(text(&found.stderr).contains("racecheck found errors"), "{}", text(&found.stderr));
}

#[test]
fn a_recorded_calibration_explains_without_a_gpu() {
    let driver = FakeDriver::new(Variant::WithBatch);
    let calibration = json(&driver.run(&["gpu", "calibrate", "--json"], &[]));
    assert_eq!(calibration["schema"], "kvtier.gpu.calibration/1");
    assert_eq!(calibration["device"], "kvtier fake device 0");

    let empty = tempfile::tempdir().expect("a directory");
    let file = empty.path().join("fake.json");
    std::fs::write(&file, calibration.to_string()).expect("written");
    let file = file.to_str().expect("a path");
    let of = |more: &[&str], environment: &[(&str, &str)]| {
        let mut args = vec!["gpu", "explain", "--block", "2MiB", "--fragment", "4KiB", "--blocks", "64"];
        args.extend(["--calibration", file, "--json"]);
        args.extend(more);
        json(&kvtier(&args, empty.path(), environment))
    };
    let load = of(&[], &[]);
    assert_eq!((&load["schema"], &load["direction"]), (&"kvtier.gpu.explain/1".into(), &"h2d".into()));
    let candidates = load["candidates"].as_array().expect("candidates");
    assert!(candidates.len() >= 3);
    assert_eq!(load["chosen"], candidates[0]["method"], "the cheapest");
    let prices: Vec<f64> = candidates.iter().filter_map(|c| c["price_seconds"].as_f64()).collect();
    assert!(prices.is_sorted() && prices.len() == candidates.len());
    assert_eq!(of(&["--direction", "d2h", "--urgency", "write-back"], &[])["direction"], "d2h");
    let forced = of(&[], &[("KVTIER_COPY_METHOD", "engine-loop")]);
    assert_eq!(forced["chosen"], "engine-loop");

    // In words, from the GPU itself.
    let args = ["gpu", "explain", "--block", "2MiB", "--fragment", "64KiB", "--blocks", "8"];
    let output = driver.run(&args, &[]);
    assert!(text(&output.stdout).contains("-> "), "{}", text(&output.stderr));
}

#[test]
fn nonsense_is_no_calibration_and_no_transfer() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("no.json");
    std::fs::write(&file, "{}").expect("written");
    let explain = |fragment: &str, file: &Path| {
        let file = file.to_str().expect("a path");
        let args = [
            "gpu",
            "explain",
            "--block",
            "2MiB",
            "--fragment",
            fragment,
            "--blocks",
            "4",
            "--calibration",
            file,
        ];
        let output = kvtier(&args, dir.path(), &[]);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr).to_owned()
    };
    assert!(explain("64KiB", &file).contains("kvtier gpu calibrate --json"));
    assert!(explain("64KiB", &dir.path().join("none")).contains("cannot read"));
    assert!(explain("3KiB", &file).contains("do not fill"));
}

/// Tiny sizes on a driver whose time means nothing: who takes part and what the figures look like.
#[test]
fn bench_has_every_contender_and_one_schema() {
    let driver = FakeDriver::new(Variant::WithBatch);
    let dir = tempfile::tempdir().expect("a directory");
    let stem = dir.path().join("fake");
    let stem = stem.to_str().expect("a path");
    let sizes = ["--fragments", "64KiB", "--bytes", "4MiB", "--rounds", "1", "--matrix", "128"];
    let mut args = vec!["gpu", "bench", "--json", "--out", stem];
    args.extend(sizes);
    let report = json(&driver.run(&args, &[("PATH", "/nowhere")]));
    assert_eq!(report["schema"], "kvtier.gpu.bench/1");
    assert_eq!(report["gpu"]["name"], "kvtier fake device 0");
    assert_eq!(report["driver"]["cuda"], "12.8");
    assert_eq!(report["date"].as_str().map(str::len), Some(10));
    assert!(report["machine"]["commit"].is_string() && report["version"].is_string());
    // Without python3 the peers are named with the reason.
    assert_eq!(report["skipped"][0]["peer"], "all peers");
    assert!(report["skipped"][0]["why"].as_str().is_some_and(|why| why.contains("python3")));

    let figures = report["figures"].as_array().expect("figures");
    let is = |figure: &Value, work: &str, contender: &str| {
        figure["work"] == work && figure["contender"] == contender
    };
    for work in ["h2d", "d2h", "both"] {
        for contender in [
            "contiguous",
            "cuMemcpyAsync loop, bare",
            "cuMemcpyBatchAsync, bare",
            "auto",
            "engine-loop",
            "engine-batch",
            "kernel x1",
            "kernel x2",
            "kernel x4",
            "bulk x1",
            "bulk x2",
            "bulk x4",
            "staged x1",
            "staged x2",
            "staged x4",
        ] {
            assert_eq!(figures.iter().filter(|f| is(f, work, contender)).count(), 1, "{work}, {contender}");
        }
    }
    for (work, contender) in [
        ("d2d", "kernel"),
        ("permute NHD to HND", "kernel"),
        ("permute NHD to half of the heads", "bulk"),
        ("evidence", "zero"),
        ("evidence", "digest"),
        ("a demand load of 50 KB", "alone"),
        ("opening a device", "measured"),
        ("product slower beside h2d", "auto"),
        ("product slower beside d2h", "kernel x1"),
    ] {
        assert!(figures.iter().any(|f| is(f, work, contender)), "{work}, {contender}");
    }
    for figure in figures {
        let of = |field: &str| figure["value"][field].as_f64().expect("a number");
        assert!(of("min") <= of("median") && of("median") <= of("max"), "{figure}");
        if figure["contender"] == "contiguous" {
            assert_eq!(figure["share"]["median"], 1.0);
        }
    }
    let marks = report["marks"].as_array().expect("marks");
    assert_eq!(marks.len(), 6);
    assert!(marks.iter().all(|mark| ["PASS", "FAIL"].contains(&mark["verdict"].as_str().unwrap_or(""))));

    let kept = std::fs::read_to_string(format!("{stem}.json")).expect("kept");
    assert_eq!(serde_json::from_str::<Value>(&kept).expect("JSON"), report);
    let page = std::fs::read_to_string(format!("{stem}.md")).expect("kept");
    assert!(page.contains("| goal (worst case)") && page.contains("not measured: all peers"));
}
