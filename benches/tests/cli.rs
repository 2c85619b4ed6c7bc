//! The real binary: what scripts rely on.
#![allow(clippy::expect_used, reason = "helpers of tests fail like tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kvtier_benches::generate::AgentTrace;

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
        (&["bench", "codec", "--help"], "kvtier bench codec --mib 256"),
        (&["bench", "copy", "--help"], "kvtier bench copy --block 5242880"),
        (&["bench", "nvme", "--help"], "kvtier bench nvme --dir /mnt/nvme --sizes 2MiB"),
        (&["bench", "reopen", "--help"], "kvtier bench reopen --records 100000"),
        (&["bench", "cost", "--help"], "kvtier bench cost --trace conversation.jsonl"),
        (&["explain", "--help"], "kvtier explain --trace conversation.jsonl --request 5000"),
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
        &["bench", "codec", "--rounds", "0"],
        &["bench", "copy", "--mib", "0"],
        &["bench", "nvme", "--sizes", "2MB"],
        &["bench", "nvme", "--seconds", "NaN"],
        &["bench", "reopen", "--records", "0"],
        &["bench", "cost", "--seeds", "0"],
        &["bench", "cost", "--trace", "x.jsonl:0"],
        &["explain", "--remote", "bent"],
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
fn bench_codec_tells_ratios_speeds_and_links() {
    let out = kvtier(&["bench", "codec", "--mib", "2", "--rounds", "1", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let result: Value = serde_json::from_slice(&out.stdout).expect("one JSON object and nothing else");
    assert_eq!(result["schema"], "kvtier.bench.codec/1");
    for figure in result["figures"].as_array().expect("figures") {
        let who = figure["contender"].as_str().expect("a name");
        let ratio = figure["ratio"].as_f64().expect("a number");
        if figure["data"] == "random" && !who.starts_with("zstd") && !who.starts_with("lz4") {
            assert_eq!((ratio, figure["pays_below_gigabits_per_second"].is_null()), (1.0, true), "{who}");
        } else if figure["data"] == "normal, bf16" && who.starts_with("kvtier") {
            assert!((1.4..1.52).contains(&ratio), "{who}: {ratio}");
        }
    }
}

/// A trace of six chats that go on and on.
fn small_trace(folder: &Path) -> String {
    let trace = AgentTrace { sessions: 6, ..AgentTrace::default() };
    let lines: Vec<_> =
        trace.requests().map(|r| serde_json::to_string(&r.request).expect("a request")).collect();
    let path = folder.join("chats.jsonl");
    std::fs::write(&path, lines.join("\n")).expect("a file");
    format!("{}:16", path.display())
}

#[test]
fn bench_cost_compares_rules_and_keeps_its_promise() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = small_trace(folder.path());
    let out = kvtier(&["bench", "cost", "--trace", &trace, "--seeds", "1", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let result: Value = serde_json::from_slice(&out.stdout).expect("one JSON object and nothing else");
    assert_eq!(result["schema"], "kvtier.bench.cost/1");
    let rules = result["rules"].as_array().expect("rules");
    assert_eq!(rules.len(), 12 * 8, "twelve remotes under eight rules");
    for figure in rules {
        let number = |what: &str, of: &str| figure[what][of].as_f64().expect("a number");
        let who = (&figure["rule"], &figure["remote"]);
        if figure["rule"].as_str().is_some_and(|rule| rule.starts_with("kvtier")) {
            assert!(number("above_promise", "max") <= 0.0, "{who:?}");
        }
        if figure["rule"] == "oracle" {
            assert_eq!(number("of_oracle", "median"), 1.0);
            assert!(number("of_recompute", "max") <= 1.0, "{who:?}");
        }
        if figure["rule"] == "never load" {
            assert_eq!((number("of_recompute", "max"), number("pulls", "max")), (1.0, 0.0));
        }
    }
    let hung = |rule: &str| {
        let found = rules.iter().find(|f| f["rule"] == rule && f["remote"] == "hang").expect("all are there");
        found["of_recompute"]["median"].as_f64().expect("a number")
    };
    assert!(hung("always load") > 5.0 && hung("kvtier") < 1.02, "the comparison can tell good from bad");
    assert_eq!(result["latency"]["allocations"], 0.0, "decisions allocate nothing");
}

#[test]
fn explain_prints_terms_that_add_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = small_trace(folder.path());
    let out = kvtier(&["explain", "--trace", &trace, "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let why: Value = serde_json::from_slice(&out.stdout).expect("one JSON object and nothing else");
    assert_eq!((&why["decided"], &why["waits"]), (&Value::from("saves"), &Value::from(true)));
    let number = |value: &Value| value.as_f64().expect("a number");
    let saved = number(&why["recompute"]) - number(&why["source"]["cost"]);
    assert!(saved > number(&why["source"]["margin"]), "{why}");
    let reserved = number(&why["after"]["reserved"]) - number(&why["before"]["reserved"]);
    assert!(reserved >= number(&why["source"]["deadline"]) - 1e-6, "{why}");
    let prose = kvtier(&["explain", "--trace", &trace, "--request", &why["request"].to_string()]);
    assert!(text(&prose.stdout).contains("decided: load, because it saves more than the margin"));
    let none = kvtier(&["explain", "--trace", &trace, "--request", "0"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("nothing to decide"), "{}", text(&none.stderr));
}

/// Both measure something with little data, in a folder that is empty again at the end.
fn small_nvme_bench(path: Option<&str>) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvtier"));
    command.args(["bench", "nvme", "--sizes", "64KiB", "--pairs", "1", "--seconds", "0.05"]);
    command.args(["--log-size", "4MiB", "--queue-depth", "4", "--json", "--dir"]).arg(folder.path());
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let out = command.output().expect("the binary runs");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "nothing is left");
    let result: Value = serde_json::from_slice(&out.stdout).expect("one JSON object and nothing else");
    assert_eq!(result["schema"], "kvtier.bench.nvme/1");
    assert_eq!(result["target_share"], 0.94);
    let figures = result["figures"].as_array().expect("figures");
    assert_eq!(figures.len(), 2);
    for (figure, direction) in figures.iter().zip(["read", "write"]) {
        assert_eq!((&figure["extent"], &figure["direction"]), (&Value::from(65536), &Value::from(direction)));
        let [kvtier, limit, share] = ["kvtier_gb_per_second", "limit_gb_per_second", "share_of_limit"]
            .map(|what| figure[what]["median"].as_f64().expect("a number"));
        assert!(kvtier > 0.0 && limit > 0.0 && (share * limit / kvtier - 1.0).abs() < 1e-9);
    }
    result
}

#[test]
fn bench_nvme_compares_with_what_there_is_and_says_which() {
    let limit = small_nvme_bench(None)["limit"].to_string();
    let fio_reads = Command::new("fio").arg("--version").output().is_ok() && !limit.contains("fio failed");
    assert_eq!(limit.contains("fio-3"), fio_reads, "{limit}");
    let limit = small_nvme_bench(Some(""))["limit"].to_string();
    assert!(
        limit.contains("threads with pread and pwrite") && limit.contains("fio is not installed"),
        "{limit}"
    );
}

#[test]
fn an_interrupted_bench_nvme_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvtier"))
        .args(["bench", "nvme", "--sizes", "64KiB", "--seconds", "60", "--log-size", "4MiB", "--dir"])
        .arg(folder.path())
        .env("PATH", "")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let progress = BufReader::new(child.stderr.take().expect("piped"));
    let reached = progress.lines().map_while(Result::ok).any(|line| line.contains("64 KiB: reads"));
    assert!(reached, "it measures");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .expect("it runs");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
fn bench_reopen_finds_every_record() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("UTF-8");
    let out = kvtier(&["bench", "reopen", "--records", "1000", "--openings", "2", "--json", "--dir", dir]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let result: Value = serde_json::from_slice(&out.stdout).expect("one JSON object and nothing else");
    assert_eq!((&result["schema"], &result["records"]), (&"kvtier.bench.reopen/1".into(), &1000.into()));
    let rate = result["records_per_second"]["median"].as_f64().expect("a number");
    let seconds = result["seconds"]["median"].as_f64().expect("a number");
    assert!((rate * seconds / 1000.0 - 1.0).abs() < 0.5, "one is the inverse of the other");
    assert_eq!(result["target_seconds"], Value::Null, "the target is for a million");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
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
    assert_eq!(markdown, format!("# Block copies\n\n{}", text(&out.stdout)));
    let json = std::fs::read(format!("{stem}.json")).expect("saved");
    let json: Value = serde_json::from_slice(&json).expect("valid JSON");
    let figures = json["figures"].as_array().expect("figures");
    assert_eq!(figures.len(), 10, "five contenders, two fragment sizes");
    assert_eq!(figures.iter().filter(|f| f["contender"] == "HBM stand-in, load").count(), 2);
    assert_eq!(figures[0]["share_of_memcpy"]["median"], 1.0);
}

#[test]
fn failures_are_code_1_and_one_readable_line() {
    let cases = [
        (&["bench", "copy", "--fragments", "3000", "--json"][..], "must divide blocks"),
        (&["bench", "nvme", "--sizes", "4KiB"], "whole pages of 4 KiB, one of them the header"),
        (&["bench", "nvme", "--sizes", "1GiB", "--log-size", "1GiB"], "it needs"),
        (&["bench", "reopen", "--dir", "no/such/folder"], "choose another with --dir"),
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

/// A small trace of agents, written to a file of its own.
fn trace(folder: &Path) -> String {
    let agents = AgentTrace { sessions: 6, block_tokens: 256, ..AgentTrace::default() };
    let line = |request| serde_json::to_string(&request).expect("a request is JSON") + "\n";
    let path = folder.join("agents.jsonl");
    std::fs::write(&path, agents.requests().map(|r| line(r.request)).collect::<String>()).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

/// The one object that a successful command prints.
fn json(args: &[&str]) -> Value {
    let out = kvtier(args);
    assert_eq!(out.status.code(), Some(0), "{args:?}: {}", text(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one JSON object and nothing else")
}

#[test]
fn a_replay_prints_the_same_again_but_for_its_timing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (trace, log) = (trace(folder.path()), folder.path().join("log"));
    std::fs::create_dir(&log).expect("made");
    let shape = [
        "replay",
        &trace,
        "--block-tokens",
        "256",
        "--hbm",
        "150",
        "--host",
        "300",
        "--nvme",
        "600",
        "--json",
    ];
    let real = ["--real", "--dir", log.to_str().expect("UTF-8"), "--block-bytes", "5000", "--seed", "9"];
    for extra in [&["--virtual"][..], &real, &["--policy", "lru", "--nvme-gb-per-day", "1"]] {
        let args = [&shape[..], extra].concat();
        // As text: the order of fields counts too.
        let printed = || {
            let out = kvtier(&args);
            assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
            let line = text(&out.stdout).to_owned();
            let (before, timing) = line.split_once("\"timing\":").expect("has a timing");
            let (_, after) = timing.split_once('}').expect("which is an object");
            format!("{before}{after}")
        };
        let first = printed();
        assert_eq!(first, printed(), "{extra:?}");
        assert!(!first.contains("seconds"), "what differs is under `timing`: {first}");
    }
    let report = json(&[&shape[..], &real].concat());
    assert_eq!((&report["mismatches"], &report["same_as_virtual"]), (&0.into(), &true.into()));
    assert!(report["verified_bytes"].as_u64().expect("a count") > 0);
    let virtual_ = json(&shape);
    assert_eq!(report["hits_by_tier"], virtual_["hits_by_tier"]);
    assert_eq!((&virtual_["mode"], &virtual_["verified_bytes"]), (&"virtual".into(), &0.into()));
}

#[test]
fn a_malformed_line_is_named_or_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = trace(folder.path());
    let good = std::fs::read_to_string(&path).expect("just written");
    let all = json(&["replay", &path, "--json"]);
    let (first, rest) = good.split_once('\n').expect("lines");
    std::fs::write(&path, format!("{first}\n{{\"timestamp\": -1}}\n{rest}nonsense\n")).expect("written");

    let out = kvtier(&["replay", &path, "--json"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stdout.is_empty());
    let error = text(&out.stderr).lines().last().expect("an error line");
    assert!(error.starts_with(&format!("kvtier: {path}, line 2: is not a request: ")), "{error}");

    let skipped = json(&["replay", &path, "--skip-bad", "--json"]);
    assert_eq!((&all["skipped_lines"], &skipped["skipped_lines"]), (&0.into(), &2.into()));
    assert_eq!((&all["requests"], &all["hit_blocks"]), (&skipped["requests"], &skipped["hit_blocks"]));

    for (args, why) in [
        (&["replay", "no/such/trace.jsonl"][..], "cannot open trace no/such/trace.jsonl: No such file"),
        (&["replay", &path, "--skip-bad", "--host", "0"], "give at least one tier some room"),
        (
            &["replay", &path, "--skip-bad", "--host", "0", "--hbm", "8", "--nvme", "8"],
            "set host_slots to at least 1",
        ),
        (
            &["replay", &path, "--skip-bad", "--nvme", "8", "--real", "--dir", "no/such/dir"],
            "no such directory; make it",
        ),
        (&["inspect", "no/such/dir"], "no such directory"),
        (&["inspect", folder.path().to_str().expect("UTF-8")], "holds no log"),
    ] {
        let out = kvtier(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(text(&out.stderr).contains(why), "{args:?}: {}", text(&out.stderr));
    }
    for args in [&["replay"][..], &["replay", &path, "--policy", "mru"], &["replay", &path, "--real"]] {
        assert_eq!(kvtier(args).status.code(), Some(2), "{args:?}");
    }
}

/// Every file of a folder with its bytes and the time of its last change.
fn contents(folder: &Path) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| {
        let entry = entry.expect("readable");
        let name = entry.file_name().to_string_lossy().into_owned();
        let changed = entry.metadata().and_then(|m| m.modified()).expect("known");
        (name, (std::fs::read(entry.path()).expect("readable"), changed))
    });
    files.collect()
}

#[test]
fn inspect_shows_what_a_replay_left_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (trace, log) = (trace(folder.path()), folder.path().join("log"));
    std::fs::create_dir(&log).expect("made");
    let log = log.to_str().expect("UTF-8");
    let shape = ["--block-tokens", "256", "--host", "200", "--nvme", "4000", "--block-bytes", "5000"];
    let report = json(&[&["replay", &trace, "--real", "--dir", log, "--json"], &shape[..]].concat());
    let before = contents(Path::new(log));
    let inspection = json(&["inspect", log, "--json"]);
    let shown = kvtier(&["inspect", log]);
    assert_eq!(contents(Path::new(log)), before, "looking changes nothing");

    // Large enough for everything: what was written is there. A record is 5000 bytes in two pages and a header.
    let records = report["nvme_writes_bytes"].as_u64().expect("a count") / (3 * 4096);
    assert!(records > 100, "{report}");
    assert_eq!(report["nvme_rewritten_bytes"], 0);
    assert_eq!((&inspection["records"], &inspection["payload_bytes"]), (&records.into(), &5000.into()));
    assert_eq!(inspection["damaged"], Value::Array(Vec::new()));
    let namespaces = inspection["namespaces"].as_object().expect("an object");
    assert_eq!(namespaces.len(), 1);
    assert!(namespaces.values().all(|n| n["records"] == records && n["bytes"] == records * 5000));
    let segments = inspection["segments"].as_array().expect("a list");
    let sum: u64 = segments.iter().map(|s| s["records"].as_u64().expect("a count")).sum();
    assert_eq!(sum, records);
    let shown = text(&shown.stdout);
    assert!(
        shown.starts_with(&format!("{records} records of 5000 bytes in {} segments", segments.len())),
        "{shown}"
    );
    assert!(shown.ends_with("No damage.\n"), "{shown}");
}

#[test]
fn the_demo_verifies_every_byte_and_cleans_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("UTF-8");
    let demo = json(&["demo", "--sessions", "2", "--dir", dir, "--json"]);
    let replay = &demo["replay"];
    assert_eq!((&replay["mismatches"], &replay["same_as_virtual"]), (&0.into(), &true.into()));
    assert!(replay["verified_bytes"].as_u64().expect("a count") > 0 && replay["hit_blocks"] != 0, "{demo}");
    assert_eq!(std::fs::read_dir(dir).expect("still there").count(), 0, "the log is gone");
    let out = kvtier(&["demo", "--sessions", "2", "--dir", "no/such/folder"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("choose another with --dir"));
}
