//! What the kernel can do, and marks of packets.

use causeway_types::Mark;
use causeway_types::state::Attach;

use crate::facts::Facts;
use crate::finding::{Finding, Severity};

/// Features that pods need.
pub(super) fn lacks(facts: &Facts) -> Vec<Finding> {
    let finding = |lacking: &crate::facts::Lacking| {
        let feature = lacking.feature.as_str();
        let (needed, why) = match feature {
            "veth" => (true, "every pod's interface is one end of such a pair"),
            "nf_tables" => (true, "guards, masquerade and host ports are rules of nftables"),
            "nf_conntrack" => (
                true,
                "masquerade and host ports translate addresses, and policies mark connections",
            ),
            "bridge" => {
                let needed = facts.node.attach == Attach::Bridge;
                (needed, "pods of type bridge are ports of one")
            }
            _ => (facts.node.tunnel, "nodes behind a router are reached by a tunnel"),
        };
        let severity = if needed { Severity::Error } else { Severity::Warning };
        Finding::new("kernel-lacks", severity, format!("kernel feature {feature}"))
            .says(format!("the kernel has no {feature}: {}", lacking.why), why)
            .fix([format!("modprobe {feature}"), module_words(feature)])
    };
    facts.lacking.iter().map(finding).collect()
}

fn module_words(feature: &str) -> String {
    format!(
        "# and to keep it: a line {feature} in /etc/modules-load.d/causeway.conf; where there is no \
         such module, another kernel is needed"
    )
}

/// Bits of packet marks that we set.
const BITS: [(u32, &str); 2] = [
    (Mark::DEFAULT.mask, "Causeway's own"),
    // As the reference plugin's, unless the configuration says otherwise (markMasqBit).
    (0x2000, "that of host ports"),
];

/// Rules that look at bits that are ours.
pub(super) fn marks(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    // A rule that looks at all bits meets no packet that carries further ones.
    for rule in facts.marks.iter().filter(|rule| rule.mask != u32::MAX) {
        let bits: Vec<String> = BITS
            .iter()
            .filter(|(bit, _)| rule.mask & bit != 0)
            .map(|(bit, whose)| format!("{bit:#x} is {whose}"))
            .collect();
        if bits.is_empty() {
            continue;
        }
        let place = format!("{} routing rule {}", rule.family, rule.priority);
        let finding = Finding::new("mark-overlap", Severity::Warning, place).says(
            format!("it looks at bits {:#x} of packet marks, and {}", rule.mask, bits.join(", ")),
            "packets that Causeway marks are routed as that rule says, or that rule's are taken for \
             ours",
        );
        let todo = "# let the program that made the rule use another mask".to_owned();
        found.push(finding.fix([todo]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Lacking, MarkRule};

    fn severity(feature: &str, change: impl Fn(&mut Facts)) -> Severity {
        let lacking = Lacking { feature: feature.into(), why: "no".into() };
        let mut facts = Facts { lacking: vec![lacking], ..Facts::default() };
        change(&mut facts);
        lacks(&facts)[0].severity
    }

    #[test]
    fn what_the_node_uses_is_an_error() {
        assert_eq!(severity("veth", |_| ()), Severity::Error);
        assert_eq!(severity("bridge", |_| ()), Severity::Warning);
        assert_eq!(severity("bridge", |f| f.node.attach = Attach::Bridge), Severity::Error);
        assert_eq!(severity("vxlan", |_| ()), Severity::Warning);
        assert_eq!(severity("vxlan", |f| f.node.tunnel = true), Severity::Error);
    }

    #[test]
    fn masks_that_hold_our_bit() {
        let with = |mask| {
            let rule = MarkRule { family: "IPv4".into(), priority: 5, mark: mask, mask };
            marks(&Facts { marks: vec![rule], ..Facts::default() }).len()
        };
        assert_eq!(
            [with(0xffff), with(0xc000), with(0x1000), with(0x2000), with(u32::MAX)],
            [1, 0, 1, 1, 0]
        );
    }
}
