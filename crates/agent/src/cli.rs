//! Status and plan as text for people.

use std::fmt::Write;

use crate::status::{PlanReport, State, Status};

/// The status as a short summary and a table: what is not as it should be first; with `all`,
/// every object.
pub fn status_table(status: &Status, all: bool) -> String {
    let mut out = String::new();
    let ready = if status.ready { "ready" } else { "not ready" };
    let inputs = &status.inputs;
    let synced = if inputs.synced { "in sync" } else { "not in sync" };
    let count = |state| status.objects.iter().filter(|o| o.state == state).count();
    let _ = writeln!(out, "node {}: {ready} (causeway {})", status.node, status.version);
    let _ = writeln!(
        out,
        "inputs: {synced}, cluster from {}, {} nodes, {} pods, {} attachments",
        inputs.view, inputs.nodes.objects, inputs.pods.objects, inputs.attachments
    );
    let counts: Vec<String> =
        State::ALL.iter().map(|s| format!("{} {}", count(*s), s.word())).collect();
    let _ = writeln!(
        out,
        "objects: {}; {} repaired, node file generation {}",
        counts.join(", "),
        status.repairs,
        status.generation
    );
    for (feed, of) in [("nodes", &inputs.nodes), ("pods", &inputs.pods)] {
        if let Some(error) = &of.error {
            let _ = writeln!(out, "watch of {feed}: {error}");
        }
    }
    for kind in &inputs.optional {
        let there = if kind.served { "the API has it" } else { "the API does not have it" };
        let error = kind.error.iter().map(|error| format!(": {error}")).collect::<String>();
        let _ = writeln!(out, "{}: {there}{error}", kind.kind);
    }
    for problem in &status.problems {
        let _ = writeln!(out, "problem ({}): {}", problem.owner, problem.message);
    }
    for stranger in &status.strangers {
        let _ = writeln!(out, "left alone: {stranger} carries our mark but is not ours");
    }
    let mut rows: Vec<[&str; 4]> = status
        .objects
        .iter()
        .filter(|o| all || o.state != State::Ok)
        .map(|o| {
            let last = o.error.as_deref().unwrap_or(&o.why);
            [o.state.word(), o.owner.as_str(), o.key.as_str(), last]
        })
        .collect();
    rows.sort_by_key(|row| row[0] == "ok");
    if !rows.is_empty() {
        rows.insert(0, ["STATE", "OWNER", "OBJECT", "WHY"]);
        out.push('\n');
        out.push_str(&columns(&rows));
    }
    out
}

/// The plan, one line an operation.
pub fn plan_lines(plan: &PlanReport) -> String {
    let mut out = String::new();
    for line in &plan.lines {
        let _ = writeln!(out, "{line}");
    }
    for line in &plan.conflicts {
        let _ = writeln!(out, "! {line}");
    }
    for line in &plan.waiting {
        let _ = writeln!(out, "? {line}: waits for a pod interface that is not there");
    }
    if out.is_empty() {
        out.push_str("nothing to do: the node is as it should be\n");
    }
    out
}

/// Left-aligned columns two spaces apart; the last one is as long as it is.
fn columns(rows: &[[&str; 4]]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut out = String::new();
    for [a, b, c, d] in rows {
        let [x, y, z] = widths;
        let _ = writeln!(out, "{a:x$}  {b:y$}  {c:z$}  {d}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ObjectStatus;

    fn object(key: &str, state: State, error: Option<&str>) -> ObjectStatus {
        ObjectStatus {
            key: key.into(),
            owner: "node".into(),
            state,
            error: error.map(Into::into),
            since: None,
            retries: 0,
            why: "because".into(),
        }
    }

    #[test]
    fn what_is_wrong_comes_first() {
        let status = Status {
            node: "n1".into(),
            objects: vec![
                object("link cni0", State::Ok, None),
                object("route 10.244.2.0/24", State::Failed, Some("no such device")),
            ],
            ..Status::default()
        };
        let short = status_table(&status, false);
        assert!(short.contains("node n1: not ready"), "{short}");
        assert!(short.contains("1 ok, 0 pending, 1 failed"), "{short}");
        assert!(short.contains("no such device") && !short.contains("link cni0"), "{short}");
        let long = status_table(&status, true);
        assert!(long.find("failed  node").unwrap() < long.find("link cni0").unwrap(), "{long}");
    }

    #[test]
    fn an_empty_plan_says_so() {
        assert!(plan_lines(&PlanReport::default()).contains("nothing to do"));
    }
}
