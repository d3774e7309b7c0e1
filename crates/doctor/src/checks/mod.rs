//! The checks. Each looks at one thing.

use crate::facts::Facts;
use crate::finding::{Finding, Severity};

mod agent;
mod api;
mod clock;
mod firewall;
mod identity;
mod kernel;
mod leftovers;
mod managers;
pub mod reach;
mod sysctls;

/// One check.
pub type Check = fn(&Facts) -> Vec<Finding>;

/// All of them: the likeliest cause first.
pub const ALL: &[Check] = &[
    cannot_look,
    firewall::foreign_drop,
    firewall::legacy,
    kernel::lacks,
    kernel::marks,
    sysctls::forwarding,
    sysctls::rp_filter,
    sysctls::bridge_nf_call,
    sysctls::neighbours,
    sysctls::conntrack,
    sysctls::accept_ra,
    agent::node_file,
    agent::silent,
    agent::reports,
    agent::list,
    agent::plugins,
    agent::addresses,
    agent::leases,
    agent::records,
    leftovers::of_others,
    managers::network_manager,
    managers::networkd,
    clock::behind,
    api::reached,
    api::skew,
    identity::own_address,
    identity::addresses,
    identity::subnets,
    identity::pods,
    identity::machines,
    identity::host_names,
    identity::macs,
    reach::nodes,
    reach::ports,
    reach::tunnels,
];

/// What could not be looked at may be the cause.
fn cannot_look(facts: &Facts) -> Vec<Finding> {
    let finding = |unread: &crate::facts::Unread| {
        Finding::new("cannot-look", Severity::Warning, unread.what.clone())
            .says(
                format!("cannot look at {}: {}", unread.what, unread.why),
                "what is wrong there is not told here",
            )
            .fix(["# run causeway doctor as root, on the node itself".to_owned()])
    };
    facts.unread.iter().map(finding).collect()
}

/// A list of names that stays short.
fn some(names: &[String]) -> String {
    const MOST: usize = 4;
    let shown = names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Unread;

    #[test]
    fn what_cannot_be_looked_at_is_named() {
        let unread = vec![Unread { what: "nftables".into(), why: "not permitted".into() }];
        let found = crate::judge(&Facts { unread, ..Facts::default() });
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].what, "cannot look at nftables: not permitted");
    }

    #[test]
    fn lists_stay_short() {
        let names: Vec<String> = ["a", "b", "c", "d", "e", "f"].map(str::to_owned).to_vec();
        assert_eq!(some(&names), "a, b, c, d and 2 more");
        assert_eq!(some(&names[..2]), "a, b");
    }
}
