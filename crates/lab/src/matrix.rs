//! Who reaches whom, and how fast.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use causeway_types::Family;
use serde::Serialize;

use crate::client::Client;
use crate::pods::{Pod, pods};
use crate::probe;
use crate::spec::Spec;

/// Somebody who asks or answers.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name for people.
    pub name: String,
    /// Where it is.
    pub netns: PathBuf,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// What one asked another.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cell {
    /// Itself.
    Own,
    /// The median round trip in microseconds.
    Micros(f64),
    /// No answer.
    Lost,
    /// The kernel refused to send.
    Refused(String),
}

/// Everybody to everybody, in one family.
#[derive(Clone, Debug, Serialize)]
pub struct Matrix {
    /// The family of the addresses.
    #[serde(serialize_with = "word")]
    pub family: Family,
    /// Who asked.
    pub rows: Vec<String>,
    /// Who was asked.
    pub columns: Vec<String>,
    /// A cell for each row and column.
    pub cells: Vec<Vec<Cell>>,
}

fn word<S: serde::Serializer>(family: &Family, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(family)
}

impl Matrix {
    /// Pairs that do not reach each other: `FROM -> TO: why`.
    pub fn failures(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (from, row) in self.rows.iter().zip(&self.cells) {
            for (to, cell) in self.columns.iter().zip(row) {
                let why = match cell {
                    Cell::Own | Cell::Micros(_) => continue,
                    Cell::Lost => "no answer",
                    Cell::Refused(why) => why,
                };
                all.push(format!("{}: {from} -> {to}: {why}", self.family));
            }
        }
        all
    }
}

/// Echo requests for each pair.
const COUNT: u16 = 3;
/// How long an answer may take.
const WAIT: Duration = Duration::from_secs(2);

/// Asks every pair: pods and nodes ask pods and the world outside. One matrix for each family of
/// the lab.
///
/// # Errors
/// When the lab does not answer, or a namespace of it cannot be entered.
pub fn matrix(client: &Client, spec: &Spec) -> Result<Vec<Matrix>> {
    let pods: Vec<Pod> = pods(client)?.into_iter().filter(|p| p.phase == "Running").collect();
    let pods: Vec<Target> = pods
        .iter()
        .filter(|p| !p.host_network)
        .map(|p| Target { name: p.label(), netns: p.netns(&spec.name), ips: p.ips.clone() })
        .collect();
    let families = spec.families.list();
    let nodes = spec.node_names().into_iter().map(|name| Target {
        netns: spec.dirs().netns(&name),
        ips: families.iter().map(|f| spec.node_addr(&name, *f).addr()).collect(),
        name,
    });
    let outside = Target {
        name: "outside".into(),
        netns: spec.dirs().netns("outside"),
        ips: families.iter().map(|f| Spec::outside(*f).0.addr()).collect(),
    };
    let from: Vec<Target> = pods.iter().cloned().chain(nodes).collect();
    let to: Vec<Target> = pods.iter().cloned().chain([outside]).collect();
    families.iter().map(|family| ask(*family, &from, &to)).collect()
}

fn ask(family: Family, from: &[Target], to: &[Target]) -> Result<Matrix> {
    let row = |source: &Target| -> Result<Vec<Cell>> {
        to.iter().map(|target| cell(family, source, target)).collect()
    };
    // A few at a time: who gets no answer waits for it.
    let mut cells = Vec::new();
    for some in from.chunks(8) {
        let rows: Vec<Result<Vec<Cell>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = some.iter().map(|s| scope.spawn(|| row(s))).collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for row in rows {
            cells.push(row?);
        }
    }
    let names = |all: &[Target]| all.iter().map(|t| t.name.clone()).collect();
    Ok(Matrix { family, rows: names(from), columns: names(to), cells })
}

fn cell(family: Family, source: &Target, target: &Target) -> Result<Cell> {
    if source.netns == target.netns {
        return Ok(Cell::Own);
    }
    let Some(ip) = target.ips.iter().find(|ip| Family::of(**ip) == family) else {
        return Ok(Cell::Refused(format!("{} has no {family} address", target.name)));
    };
    match probe::ping(&source.netns, *ip, COUNT, 56, WAIT) {
        Ok(mut times) if times.len() == usize::from(COUNT) => {
            times.sort();
            Ok(Cell::Micros(times[times.len() / 2].as_secs_f64() * 1e6))
        }
        Ok(_) => Ok(Cell::Lost),
        Err(error) => Ok(Cell::Refused(format!("{error:#}"))),
    }
}
