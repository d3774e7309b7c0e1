//! `causeway policy drops`: what policies dropped on this node, and why.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use causeway_agent::client;
use causeway_agent::policy::{DropRecord, DropReport};

use crate::words::{say, say_json};

/// How often the agent is asked by `--follow`.
const EVERY: Duration = Duration::from_millis(300);

pub(super) fn run(pod: Option<&str>, follow: bool, socket: &Path, json: bool) -> Result<ExitCode> {
    let pod = pod.map(|name| match name.contains('/') {
        true => name.to_owned(),
        false => format!("default/{name}"),
    });
    let mut report = of(socket, pod.as_deref())?;
    if json && !follow {
        say_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !json {
        let all: u64 = report.packets.values().sum();
        let of: Vec<String> = report.packets.iter().map(|(why, n)| format!("{why} {n}")).collect();
        say(&format!("{all} packets dropped since the agent began: {}\n", of.join(", ")))?;
    }
    let mut told: HashMap<String, u64> = HashMap::new();
    loop {
        for record in &report.records {
            let key = format!(
                "{} {} {} {}",
                record.from.address, record.to.address, record.transport, record.reason
            );
            let before = told.insert(key, record.seen).unwrap_or(0);
            match json {
                _ if record.seen == before => {}
                // One a line, for programs.
                true => say(&(serde_json::to_string(record)? + "\n"))?,
                false => say(&(line(record, record.seen.saturating_sub(before)) + "\n"))?,
            }
        }
        if !follow {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(EVERY);
        report = of(socket, pod.as_deref())?;
    }
}

/// What was dropped, of a pod at either end or of all.
fn of(socket: &Path, pod: Option<&str>) -> Result<DropReport> {
    let mut report = client::drops(socket)?;
    if let Some(pod) = pod {
        let is = |end: &causeway_agent::policy::DropEnd| end.pod.as_deref() == Some(pod);
        report.records.retain(|record| is(&record.from) || is(&record.to));
    }
    Ok(report)
}

/// A record in one line.
pub(super) fn line(record: &DropRecord, seen: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ago = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).saturating_sub(record.last) / 1000;
    let asked = match &record.asked {
        Some(asked) => format!(" (asked for {asked})"),
        None => String::new(),
    };
    let answers = if record.answers { ", answers too" } else { "" };
    format!(
        "{ago} s ago  {seen} seen  {} to {}{asked}, {}{answers}: dropped: {}",
        record.from, record.to, record.transport, record.why
    )
}
