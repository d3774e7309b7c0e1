//! Medians, spread and ratios, as a table for people and JSON for comparison over time.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

/// The samples of one thing measured.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// What was measured.
    pub(crate) name: String,
    /// Unit of the samples.
    pub(crate) unit: &'static str,
    /// One sample a round or a call.
    pub(crate) samples: Vec<f64>,
    /// The series that this one is compared with.
    pub(crate) against: Option<String>,
}

/// One line of the result.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    unit: &'static str,
    median: f64,
    p99: f64,
    /// 10th and 90th percentile.
    spread: [f64; 2],
    samples: usize,
    ratio: Option<f64>,
    ratio_to: Option<String>,
}

impl Series {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, against: Option<&str>) -> Self {
        Self { name: name.into(), unit, samples: Vec::new(), against: against.map(str::to_owned) }
    }

    /// The value below which the given part (0 to 1) of the samples lies.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((part * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Prints the table and writes `RESULTS/NAME.json`.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn publish(name: &str, notes: &[String], all: &[Series], results: &Path) -> Result<()> {
    let median = |name: &str| all.iter().find(|s| s.name == name).map(|s| s.quantile(0.5));
    let rows: Vec<Row> = all
        .iter()
        .map(|s| {
            let ratio = s.against.as_deref().and_then(median).map(|base| s.quantile(0.5) / base);
            Row {
                name: s.name.clone(),
                unit: s.unit,
                median: s.quantile(0.5),
                p99: s.quantile(0.99),
                spread: [s.quantile(0.1), s.quantile(0.9)],
                samples: s.samples.len(),
                ratio,
                ratio_to: s.against.clone(),
            }
        })
        .collect();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "median", "p10 – p90", "p99", "unit", "ratio", "to", "n"]);
    for row in &rows {
        table.add_row([
            row.name.clone(),
            number(row.median),
            format!("{} – {}", number(row.spread[0]), number(row.spread[1])),
            number(row.p99),
            row.unit.to_owned(),
            row.ratio.map_or(String::new(), |r| format!("{r:.2}")),
            row.ratio_to.clone().unwrap_or_default(),
            row.samples.to_string(),
        ]);
    }
    println!("\n{name}\n{table}");
    for note in notes {
        println!("{note}");
    }
    std::fs::create_dir_all(results).with_context(|| format!("create {}", results.display()))?;
    let path = results.join(format!("{name}.json"));
    let json = serde_json::json!({ "benchmark": name, "notes": notes, "rows": rows });
    let text = serde_json::to_string_pretty(&json)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
