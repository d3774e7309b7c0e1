//! Findings for people.

use crate::{Finding, Severity};

/// One block a finding; one line when there is none.
pub fn render(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing wrong\n".to_owned();
    }
    let mut out = String::new();
    for f in findings {
        out.push_str(&format!("{:<8} {}: {}\n", f.severity.word(), f.id, f.what));
        for (head, line) in [("where", &f.place), ("why", &f.why)] {
            out.push_str(&format!("  {head:<6} {line}\n"));
        }
        for (at, line) in f.todo.iter().enumerate() {
            out.push_str(&format!("  {:<6} {line}\n", if at == 0 { "do" } else { "" }));
        }
        out.push('\n');
    }
    out + &summary(findings)
}

fn summary(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let word = |number, word: &str| match number {
        1 => format!("1 {word}"),
        n => format!("{n} {word}s"),
    };
    let all = [Severity::Error, Severity::Warning, Severity::Note];
    let parts = all.map(|s| (count(s), s.word())).into_iter().filter(|(n, _)| *n > 0);
    parts.map(|(n, w)| word(n, w)).collect::<Vec<_>>().join(", ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_when_nothing_is_wrong() {
        assert_eq!(render(&[]), "nothing wrong\n");
    }

    #[test]
    fn aligned_and_counted() {
        let finding = Finding::new("cannot-look", Severity::Warning, "somewhere")
            .says("it is so", "pods suffer")
            .fix(["one".to_owned(), "two".to_owned()]);
        assert_eq!(
            render(&[finding.clone(), finding]),
            "warning  cannot-look: it is so\n  where  somewhere\n  why    pods suffer\n  \
             do     one\n         two\n\nwarning  cannot-look: it is so\n  where  somewhere\n  \
             why    pods suffer\n  do     one\n         two\n\n2 warnings\n"
        );
    }
}
