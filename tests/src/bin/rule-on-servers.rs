//! Load or recompute on real servers, with real bytes and faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use clap::Parser;
use kvtier_benches::report::Machine;
use kvtier_tests::on_servers::{Backend, Prompts, Report, SCENARIOS, play};

/// Load or recompute on real servers: kvtier beside "always load", while the network and the server get worse
///
/// Recomputing is sleeping for as long as gpt-oss-120b takes on an H200. Every byte that is accepted is compared.
/// Exits with 1 if kvtier took more than 1.02 times recompute-only and 1 s in any scenario.
#[derive(Parser)]
struct Args {
    /// Requests per scenario; the server gets worse after a third of them
    #[arg(long, default_value_t = 90)]
    requests: usize,
    /// Which servers
    #[arg(long, value_delimiter = ',', default_values = ["redis", "s3"])]
    servers: Vec<String>,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also keep the result as STEM.json and STEM.md
    #[arg(long, value_name = "STEM")]
    save: Option<PathBuf>,
}

/// A program that is built into the same directory.
fn beside(name: &str) -> String {
    let program = std::env::current_exe().unwrap().with_file_name(name);
    assert!(program.exists(), "{} is missing: cargo build -p kvtier-tests --bins", program.display());
    program.to_string_lossy().into_owned()
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let prompts = Prompts::new(args.requests);
    let mut figures = Vec::new();
    for server in &args.servers {
        let backend = match server.as_str() {
            "redis" => Backend::redis(),
            "s3" => Backend::s3(&beside("s3-server")),
            other => panic!("no such server: {other}; there are redis and s3"),
        };
        for scenario in SCENARIOS.iter().filter(|s| s.name.contains(&args.only)) {
            eprintln!("{server}, {}", scenario.name);
            figures.push(play(&backend, scenario, &prompts));
        }
    }
    let report = Report { machine: Machine::here(), figures };
    let json = serde_json::to_string_pretty(&report).unwrap();
    if let Some(stem) = &args.save {
        std::fs::write(stem.with_extension("json"), format!("{json}\n")).unwrap();
        std::fs::write(stem.with_extension("md"), report.to_string()).unwrap();
    }
    println!("{}", if args.json { json } else { report.to_string() });
    let kept = report.figures.iter().all(|figure| figure.above_promise <= 0.0);
    std::process::ExitCode::from(u8::from(!kept))
}
