//! What is wrong with a node, and what to do: a pure function from facts about the node to
//! findings.
//!
//! The facts ([`facts::Facts`]) are gathered by `causeway doctor` and can be written as JSON; here
//! nothing is read and nothing is asked. Each check is a function of its own in [`checks`] that
//! looks at one thing and answers with findings, whose ids are those of [`IDS`] and
//! of `docs/doctor.md`.

pub mod checks;
pub mod facts;
mod finding;
mod ids;
pub mod leftovers;
pub mod openings;
pub mod text;

pub use facts::Facts;
pub use finding::{Finding, Severity};
pub use ids::IDS;

/// Everything that is wrong, the worst first, and within a severity in the order of the checks.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all: Vec<Finding> = checks::ALL.iter().flat_map(|check| check(facts)).collect();
    all.sort_by_key(|finding| finding.severity);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_wrong_with_nothing() {
        assert_eq!(judge(&Facts::default()), []);
    }

    #[test]
    fn facts_can_be_written_down() {
        let facts = Facts::default();
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
        assert_eq!(serde_json::from_str::<Facts>("{}").unwrap(), facts);
    }

    #[test]
    fn the_page_explains_every_id() {
        let page = include_str!("../../../docs/doctor.md");
        for id in IDS {
            assert!(page.contains(&format!("| `{id}` |")), "docs/doctor.md says nothing of {id}");
        }
        let table = page.split("## Findings").nth(1).unwrap();
        let rows = table.lines().filter(|l| l.starts_with("| `")).count();
        assert_eq!(rows, IDS.len(), "docs/doctor.md explains what is not there");
    }
}
