//! Looking at a lab: list, status, ping.

use std::process::ExitCode;

use anyhow::Result;
use causeway_agent::cli;
use causeway_lab::{Cell, Matrix, Record, matrix, names, nodes};

use super::Which;
use crate::words::{columns, say, say_json};

/// The labs on this machine.
///
/// # Errors
/// When standard output fails.
pub(crate) fn list() -> Result<()> {
    let mut rows = vec![
        ["LAB", "WORKERS", "ATTACH", "ROAD", "FAMILY", "KUBECONFIG"].map(str::to_owned).to_vec(),
    ];
    for name in names() {
        let row = match Record::load(&name) {
            Ok(Record { spec, .. }) => {
                let word = |v: serde_json::Value| v.as_str().unwrap_or_default().to_owned();
                let path = spec.dirs().kubeconfig();
                vec![
                    name,
                    spec.nodes.to_string(),
                    word(serde_json::to_value(spec.attach)?),
                    word(serde_json::to_value(spec.road)?),
                    word(serde_json::to_value(spec.families)?),
                    path.display().to_string(),
                ]
            }
            Err(error) => vec![name, format!("{error:#}")],
        };
        rows.push(row);
    }
    say(&columns(&rows))
}

/// How the nodes do; the exit code tells whether all do well.
///
/// # Errors
/// When the lab does not answer.
pub(crate) fn status(which: &Which, json: bool) -> Result<ExitCode> {
    let spec = which.record()?.spec;
    let all = nodes(&spec)?;
    let well = all.iter().all(|n| {
        n.ready
            && n.agent.as_ref().is_ok_and(|a| {
                a.ready && a.problems.is_empty() && a.objects.iter().all(|o| o.state.word() == "ok")
            })
    });
    let code = ExitCode::from(u8::from(!well));
    if json {
        say_json(&all)?;
        return Ok(code);
    }
    let heads = ["NODE", "READY", "ADDRESSES", "POD CIDRS", "AGENT", "OBJECTS", "REPAIRS"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for node in &all {
        let process = match node.process.pid {
            Some(pid) => format!("pid {pid}"),
            None => node.process.ended.clone().unwrap_or_else(|| "not started".into()),
        };
        let (objects, repairs) = match &node.agent {
            Ok(agent) => (agent.objects.len().to_string(), agent.repairs.to_string()),
            Err(_) => ("?".into(), "?".into()),
        };
        rows.push(vec![
            node.name.clone(),
            if node.ready { "yes" } else { "no" }.into(),
            node.addresses.join(","),
            node.pod_cidrs.join(","),
            process,
            objects,
            repairs,
        ]);
    }
    say(&columns(&rows))?;
    for node in &all {
        match &node.agent {
            Ok(agent) if well_enough(agent) => {}
            Ok(agent) => say(&format!("\n{}", cli::status_table(agent, false)))?,
            Err(error) => say(&format!("\n{}: {error}\n", node.name))?,
        }
    }
    Ok(code)
}

fn well_enough(agent: &causeway_agent::status::Status) -> bool {
    agent.ready && agent.problems.is_empty() && agent.objects.iter().all(|o| o.state.word() == "ok")
}

/// The matrix of all pairs; the exit code tells whether all reach each other.
///
/// # Errors
/// When the lab does not answer.
pub(crate) fn ping(which: &Which, json: bool) -> Result<ExitCode> {
    let spec = which.record()?.spec;
    let all = matrix(&which.client()?, &spec)?;
    let failures: Vec<String> = all.iter().flat_map(Matrix::failures).collect();
    let code = ExitCode::from(u8::from(!failures.is_empty()));
    if json {
        say_json(&all)?;
        return Ok(code);
    }
    for matrix in &all {
        let mut head = vec![format!("{} ms", matrix.family)];
        head.extend(matrix.columns.iter().cloned());
        let mut rows = vec![head];
        for (name, cells) in matrix.rows.iter().zip(&matrix.cells) {
            let mut row = vec![name.clone()];
            row.extend(cells.iter().map(|cell| match cell {
                Cell::Own => "·".to_owned(),
                Cell::Micros(us) => format!("{:.3}", us / 1e3),
                Cell::Lost => "LOST".to_owned(),
                Cell::Refused(_) => "ERROR".to_owned(),
            }));
            rows.push(row);
        }
        say(&format!("{}\n", columns(&rows)))?;
    }
    let pairs: usize =
        all.iter().flat_map(|m| &m.cells).flatten().filter(|c| **c != Cell::Own).count();
    say(&format!("{} of {pairs} pairs reach each other\n", pairs - failures.len()))?;
    for failure in failures {
        say(&format!("{failure}\n"))?;
    }
    Ok(code)
}
