//! The real binary: what scripts rely on.
#![allow(clippy::expect_used, reason = "helpers of tests fail like tests")]

use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn kvtier(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvtier")).args(args).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

#[test]
fn help_teaches_by_example_at_every_level() {
    for (args, example) in [
        (&["--help"][..], "kvtier bench index --blocks 4096 --json"),
        (&["help", "bench"], "against the hardware's limit"),
        (&["bench", "index", "--help"], "--features peers"),
        (&["bench", "copy", "--help"], "kvtier bench copy --block 5242880"),
    ] {
        let out = kvtier(args);
        assert_eq!(out.status.code(), Some(0), "{args:?}");
        assert!(text(&out.stdout).contains(example), "{args:?}: {}", text(&out.stdout));
        assert!(out.stderr.is_empty());
    }
    assert_eq!(text(&kvtier(&["--version"]).stdout), concat!("kvtier ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn wrong_usage_is_code_2_on_standard_error() {
    for args in [
        &[][..],
        &["bench"],
        &["no-such-thing"],
        &["bench", "index", "--blocks", "0"],
        &["bench", "index", "--blocks", "1k"],
        &["bench", "index", "--rounds", "-1"],
        &["bench", "copy", "--mib", "0"],
    ] {
        let out = kvtier(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty(), "{args:?}");
        assert!(!out.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn bench_index_prints_one_json_object() {
    let out = kvtier(&["bench", "index", "--blocks", "4096", "--rounds", "3", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("4096 blocks: round 3 of 3"), "progress goes to standard error");
    let result: Value = serde_json::from_slice(&out.stdout).expect("one JSON object and nothing else");
    assert_eq!(result["schema"], "kvtier.bench.index/1");
    let times = result["times"].as_array().expect("times");
    let of = |who: &str| times.iter().filter(|t| t["contender"] == who).count();
    assert_eq!((of("kvtier"), of("HashMap, identity"), of("HashMap, SipHash")), (4, 3, 3));
    for time in times {
        let (min, median, max) =
            (&time["ns_per_block"]["min"], &time["ns_per_block"]["median"], &time["ns_per_block"]["max"]);
        let [min, median, max] = [min, median, max].map(|v| v.as_f64().expect("a number"));
        assert!(0.0 < min && min <= median && median <= max);
    }
    let of_kvtier = |m: &&Value| m["contender"] == "kvtier";
    let memory = result["memory"].as_array().expect("the binary counts its heap").iter().find(of_kvtier);
    let memory = memory.expect("kvtier's memory");
    assert_eq!(memory["steady_allocations_per_block"], 0.0, "look-ups and churn allocate nothing");
    assert!(memory["bytes_per_block"].as_f64().expect("a number") <= 96.0);
}

#[test]
fn saved_results_are_what_was_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    let stem = folder.path().join("copy-2026.1");
    let stem = stem.to_str().expect("UTF-8");
    let args = ["bench", "copy", "--block", "8192", "--fragments", "4096", "--mib", "1", "--rounds", "2"];
    let out = kvtier(&[&args[..], &["--save", stem]].concat());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let markdown = std::fs::read_to_string(format!("{stem}.md")).expect("saved");
    assert_eq!(markdown, format!("# Block copies in plain memory\n\n{}", text(&out.stdout)));
    let json = std::fs::read(format!("{stem}.json")).expect("saved");
    let json: Value = serde_json::from_slice(&json).expect("valid JSON");
    let figures = json["figures"].as_array().expect("figures");
    assert_eq!(figures.len(), 6, "three contenders, two fragment sizes");
    assert_eq!(figures[0]["share_of_memcpy"]["median"], 1.0);
}

#[test]
fn failures_are_code_1_and_one_readable_line() {
    let cases = [
        (&["bench", "copy", "--fragments", "3000", "--json"][..], "must divide blocks"),
        (
            &[
                "bench",
                "copy",
                "--block",
                "64",
                "--fragments",
                "64",
                "--mib",
                "1",
                "--rounds",
                "1",
                "--save",
                "no/such/folder/x",
            ],
            "cannot write no/such/folder/x.json; does its folder exist?: No such file or directory",
        ),
    ];
    for (args, why) in cases {
        let out = kvtier(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(out.stdout.is_empty());
        let last = text(&out.stderr).lines().last().expect("an error line");
        assert!(last.starts_with("kvtier: ") && last.contains(why), "{last}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvtier"))
        .args(["bench", "copy", "--mib", "1", "--rounds", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
}
