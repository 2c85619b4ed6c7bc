//! Copies of other projects, by a Python script that is part of this binary.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Bench, Figure};

const SCRIPT: &str = include_str!("../../../gpu/peers.py");
/// A script that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(600);

/// Somebody who did not take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Who.
    pub peer: String,
    /// Why.
    pub why: String,
}

/// What the script prints.
#[derive(Default, Deserialize)]
pub(super) struct Found {
    pub(super) figures: Vec<Figure>,
    pub(super) skipped: Vec<Skipped>,
}

/// Never fails: peers that cannot be measured are named with the reason.
pub(super) fn measure(bench: &Bench) -> Found {
    run(bench).unwrap_or_else(|why| Found {
        figures: Vec::new(),
        skipped: vec![Skipped { peer: "all peers".to_owned(), why }],
    })
}

fn run(bench: &Bench) -> Result<Found, String> {
    let fragments: Vec<String> = bench.fragments.iter().map(|fragment| fragment.0.to_string()).collect();
    let mut child = Command::new("python3")
        .args(["-", "--device", &bench.ordinal.to_string(), "--rounds", &bench.rounds.to_string()])
        .args(["--bytes", &bench.bytes.0.to_string(), "--fragments", &fragments.join(",")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("python3: {error}"))?;
    let text = talk(&mut child)?;
    serde_json::from_str(&text).map_err(|error| format!("the script's output: {error}"))
}

fn talk(child: &mut Child) -> Result<String, String> {
    let sent = child.stdin.take().map(|mut stdin| stdin.write_all(SCRIPT.as_bytes()));
    let Some(mut stdout) = child.stdout.take() else { return Err("python3 has no output".to_owned()) };
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let since = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if since.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                child.kill().ok();
                child.wait().ok();
                return Err(format!("the script took more than {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(format!("python3: {error}")),
        }
    };
    if !status.success() {
        return Err(format!("python3 ended with {status}"));
    }
    if let Some(Err(error)) = sent {
        return Err(format!("python3: {error}"));
    }
    match reader.join() {
        Ok(Ok(text)) => Ok(text),
        _ => Err("python3's output cannot be read".to_owned()),
    }
}
