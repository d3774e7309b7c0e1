//! Chains of others that drop forwarded packets. What one chain drops no other can accept, so an
//! accept in our own table does not help there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_cni_spec::CniError;
use causeway_kernel::nft::foreign::{Change, ForeignRule, Layer, Place};
use causeway_types::{Cidr, Family, names};

use super::note::{Forward, Inserted};
use crate::space::Space;

/// A chain that drops what no rule of it accepts.
pub(crate) struct Dropping {
    /// Where.
    pub place: Place,
    /// No rule of it accepts anything.
    pub all: bool,
    /// Who keeps it.
    keeper: Keeper,
}

/// The program whose chain it is: each has a command of its own that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    /// Its rules in iptables' FORWARD lead to chains of its own.
    Ufw,
    /// It makes its table anew with each reload.
    Firewalld,
    /// An administrator, or whoever.
    Unknown,
}

/// The chains of ufw that FORWARD leads to first.
const UFW: [&str; 2] = ["ufw-before-forward", "ufw6-before-forward"];

/// firewalld's: its policy is to accept, and its last rule rejects.
fn firewalld() -> Place {
    Place::new(Layer::Inet, "firewalld", "filter_FORWARD")
}

impl Dropping {
    /// All of them that packets of some families pass.
    ///
    /// # Errors
    /// Code 999 when the kernel does not say.
    pub(crate) fn find(node: &mut Space, families: &[Family]) -> Result<Vec<Self>, CniError> {
        node.kernel(|handle| {
            let nft = handle.nft()?;
            let mut places = nft.dropping_forward_chains()?;
            places.retain(|p| !matches!(p.table.as_str(), names::NFT_AGENT | names::NFT_PLUGINS));
            if !places.contains(&firewalld()) {
                places.extend(nft.existing_chains(vec![firewalld()])?);
            }
            places.retain(|p| families.iter().any(|f| p.layer.sees(*f)));
            let mut all = Vec::new();
            for place in places {
                let rules = nft.rules_of(&place)?;
                let accepts = rules.iter().any(|rule| rule.may_accept);
                let ufw = |chain: &String| UFW.contains(&chain.as_str());
                let keeper = if place == firewalld() {
                    Keeper::Firewalld
                } else if rules.iter().any(|rule| rule.leads_to.iter().any(ufw)) {
                    Keeper::Ufw
                } else {
                    Keeper::Unknown
                };
                all.push(Self { all: !accepts && keeper != Keeper::Firewalld, place, keeper });
            }
            Ok(all)
        })
    }

    /// What it is and does, and what to do about it, for pods of some subnets.
    pub(crate) fn describe(&self, subnets: &[Cidr]) -> String {
        let Place { layer, table, chain } = &self.place;
        let place = format!("chain {chain} of table {} {table}", layer.as_str());
        if self.keeper == Keeper::Firewalld {
            return format!(
                "{place} rejects what no zone of firewalld lets through, which no other table can \
                 overrule: run `{}`",
                trust(subnets)
            );
        }
        let iptables = table == "filter" && chain == "FORWARD";
        let command = match layer {
            _ if self.keeper == Keeper::Ufw => "ufw default allow routed".to_owned(),
            Layer::Ip if iptables => "iptables -P FORWARD ACCEPT".to_owned(),
            Layer::Ip6 if iptables => "ip6tables -P FORWARD ACCEPT".to_owned(),
            _ => format!("nft 'chain {} {table} {chain} {{ policy accept; }}'", layer.as_str()),
        };
        let rules = match self.all {
            true => "and no rule that accepts anything",
            false => "and must have rules of its own for pods",
        };
        format!(
            "{place} has policy drop {rules}, which no other table can overrule: set \
             \"foreignForward\" to \"insert\", or run `{command}`"
        )
    }

    /// Why rules that were inserted do not stay; `None` where they do.
    pub(crate) fn forgets(&self, subnets: &[Cidr]) -> Option<String> {
        (self.keeper == Keeper::Firewalld).then(|| {
            format!(
                "key \"foreignForward\" is \"insert\", but firewalld forgets rules of others when \
                 it reloads: run `{}`",
                trust(subnets)
            )
        })
    }
}

/// The command that makes firewalld let pods through, for good.
fn trust(subnets: &[Cidr]) -> String {
    let mut sources: String = subnets.iter().map(|s| format!(" --add-source={s}")).collect();
    if sources.is_empty() {
        sources = " --add-source=SUBNET".to_owned();
    }
    format!("firewall-cmd --permanent --zone=trusted{sources} && firewall-cmd --reload")
}

/// Warnings on tables of the old iptables, into which nobody can look by nftables.
pub(crate) fn legacy(families: &[Family]) -> Vec<String> {
    let mut all = Vec::new();
    for family in families {
        let (file, program) = match family {
            Family::V4 => ("ip_tables_names", "iptables-legacy"),
            Family::V6 => ("ip6_tables_names", "ip6tables-legacy"),
        };
        // Not there without the kernel's old iptables.
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        if names.is_ok_and(|names| names.lines().any(|name| name == "filter")) {
            all.push(format!(
                "{program} has a table filter, which cannot be looked into: if `{program} -S \
                 FORWARD` shows policy DROP, run `{program} -P FORWARD ACCEPT`"
            ));
        }
    }
    all
}

/// The families that chains drop for certain.
pub(crate) fn blocked(chains: &[Dropping]) -> BTreeSet<Family> {
    let certain = || chains.iter().filter(|c| c.all);
    Family::BOTH.into_iter().filter(|f| certain().any(|c| c.place.layer.sees(*f))).collect()
}

/// How comments of inserted rules begin.
const MARK: &str = "causeway ";

/// The comment of inserted rules.
fn comment(note: &Forward) -> String {
    format!("{MARK}{}", note.whose.tag())
}

pub(crate) fn inserted(place: &Place) -> Inserted {
    Inserted {
        family: place.layer.as_str().to_owned(),
        table: place.table.clone(),
        chain: place.chain.clone(),
    }
}

fn place(inserted: &Inserted) -> Place {
    let layers = [Layer::Inet, Layer::Ip, Layer::Ip6];
    let layer = layers.into_iter().find(|l| l.as_str() == inserted.family);
    Place::new(layer.unwrap_or(Layer::Inet), &inserted.table, &inserted.chain)
}

/// The rules that belong into a chain: one for what the pod sends, one for what is sent to it.
fn wanted(note: &Forward, place: &Place) -> Vec<(IpAddr, bool)> {
    let seen = note.addresses.iter().filter(|ip| place.layer.sees(Family::of(**ip)));
    seen.flat_map(|ip| [(*ip, true), (*ip, false)]).collect()
}

/// Puts the rules into the chains that the note names, in place of those that are there. Answers
/// whether one of them held no rule of any attachment: this is the first, or it was made anew.
///
/// # Errors
/// Code 999 when the kernel refuses.
pub(crate) fn insert(node: &mut Space, note: &Forward) -> Result<bool, CniError> {
    let (mut changes, bare) = removals(node, note)?;
    for place in note.inserted.iter().map(place) {
        for (ip, source) in wanted(note, &place) {
            let comment = comment(note);
            changes.push(Change::AcceptFirst { place: place.clone(), ip, source, comment });
        }
    }
    let changed = node.kernel(|handle| handle.nft()?.change_foreign(&changes));
    changed.map(|()| bare).map_err(|e| {
        let places: Vec<String> =
            note.inserted.iter().map(|i| format!("{} {} {}", i.family, i.table, i.chain)).collect();
        e.with_details(format!(
            "key \"foreignForward\" is \"insert\", chains {}; a table that belongs to a running \
             program (flag owner, as newer firewalld sets it) can be changed by that alone",
            places.join(", ")
        ))
    })
}

fn removals(node: &mut Space, note: &Forward) -> Result<(Vec<Change>, bool), CniError> {
    let (mut changes, mut bare) = (Vec::new(), false);
    for place in note.inserted.iter().map(place) {
        let rules = node.kernel(|handle| handle.nft()?.rules_of(&place))?;
        let ours = |r: &ForeignRule| r.comment.as_deref().is_some_and(|c| c.starts_with(MARK));
        bare |= !rules.iter().any(ours);
        let own = rules.iter().filter(|r| r.comment.as_deref() == Some(&comment(note)));
        changes.extend(
            own.map(|rule| Change::DeleteRule { place: place.clone(), handle: rule.handle }),
        );
    }
    Ok((changes, bare))
}

/// Takes the rules out of the chains that the note names; what is gone is fine. Answers whether all
/// of them were there.
///
/// # Errors
/// Code 999 when the kernel refuses.
pub(crate) fn remove(node: &mut Space, note: &Forward) -> Result<bool, CniError> {
    let (changes, _) = removals(node, note)?;
    node.kernel(|handle| handle.nft()?.change_foreign(&changes))?;
    let all: usize = note.inserted.iter().map(|i| wanted(note, &place(i)).len()).sum();
    Ok(changes.len() >= all)
}

/// The first chain that lacks a rule for the attachment.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(crate) fn first_without(
    node: &mut Space,
    note: &Forward,
    chains: &[Dropping],
) -> Result<Option<Place>, CniError> {
    for Dropping { place, .. } in chains {
        let rules = node.kernel(|handle| handle.nft()?.rules_of(place))?;
        let own = rules.iter().filter(|r| r.comment.as_deref() == Some(&comment(note)));
        if own.count() < wanted(note, place).len() {
            return Ok(Some(place.clone()));
        }
    }
    Ok(None)
}
