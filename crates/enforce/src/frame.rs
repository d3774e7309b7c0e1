//! What the table always holds: the base chains, and the maps that lead from a pod's address to what its
//! policies come to.
//!
//! A tracked packet is judged by its connection: by who opened it (`ct original saddr`), who answers it and at
//! which port (`ct reply saddr`, `ct reply proto-src`). These are the same for every packet of the connection,
//! whichever way it goes, before and behind any translation, and for ICMP errors about it. So a change of
//! policies ends what is not allowed any more and nothing else, and no entry has to be removed.
//!
//! What a connection may do is the same for all its packets until something changes. So a packet that passes leaves on
//! its connection, as its mark, the number of the state of the table by which it was judged; each transaction that
//! may take something away gives it another number; and packets of connections with the number of now pass by one
//! look-up. The number that a packet leaves is a constant of the chain that it goes through, which the kernel takes up
//! before any set is asked: where a transaction comes in the packet's time it leaves the older one, and the next packet
//! is judged anew. Connections that others have given a mark keep it, and each of their packets is judged.
//!
//! Packets that are not tracked are judged by their headers, in chains of their own beside those of all others. Only
//! what elements lead to asks which of the two a packet needs: the kernel follows every way through a table that
//! gets a rule (`nft_table_validate`), and with a choice at each step there would be very many.

use causeway_model::nft::{
    Base, Chain, ChainType, Field, Hook, KeyPart, KeyType, MatchOp, NftFamily, NftTable, Policy,
    Rhs, Rule, Set, Stmt, Verdict,
};
use causeway_policy::Direction;
use causeway_types::{Family, names};

/// `NF_CT_STATE_BIT`s.
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 2;
const KNOWN: u32 = ESTABLISHED | 4;
const NEW: u32 = 8;
pub(crate) const UNTRACKED: u32 = 64;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
const SYN: u32 = 2;
/// The first of the ports that are given to clients, as a rule (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: u32 = 0x8000;
/// Packets a second that are handed to the agent, so that it can tell of them.
const LOGGED: u32 = 100;
/// Bytes of a packet that say who it is from and what it is: both headers with options.
pub const LOG_BYTES: u32 = 128;
/// The group that the agent listens at: "CW".
pub const LOG_GROUP: u16 = 0x4357;

/// The chain at whose end connections are marked.
pub(crate) const JUDGE: &str = "judge";
/// The set of the mark of connections that are judged.
pub(crate) const JUDGED: &str = "judged";
/// Marks are ours if these bits are as in [`MARK`]. The others count the states of the table: an idle connection is
/// forgotten after five days (`nf_conntrack_tcp_timeout_established`), in which the number would come round with more
/// than six hundred changes a second.
const MARK_MASK: u32 = 0xf000_0000;
const MARK: u32 = 0xc000_0000;

/// The mark of a state of the table, by its number.
pub(crate) fn mark(number: u32) -> u32 {
    MARK | number & !MARK_MASK
}

/// The last rule of [`JUDGE`].
pub(crate) fn mark_rule(mark: u32) -> Rule {
    Rule::new("judged by this state of the table", [Stmt::CtMark { mark }])
}

/// Which way a packet goes. At the hooks of the table this and its header say between whom it is, also where the kernel
/// hands over no connections with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who opened the connection.
    Original,
    /// To who opened it.
    Reply,
    /// It belongs to no connection.
    Untracked,
}

impl Way {
    /// The end of the text that it is logged with.
    fn end(self) -> &'static str {
        match self {
            Self::Original => "",
            Self::Reply => " reply",
            Self::Untracked => " untracked",
        }
    }
}

/// Why a packet is dropped; the beginning of the text that it is logged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The policies of the pod that it is for allow it not.
    Ingress,
    /// The policies of the pod that it is from allow it not.
    Egress,
    /// It is out of place in its connection, and a pod with policies is at one end.
    Invalid,
    /// It is in the middle of a connection of which nothing is known, and which end opened it neither.
    Midstream,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ingress, Self::Egress, Self::Invalid, Self::Midstream];

    /// By the text that it is logged with, with the way that the packet goes.
    #[must_use]
    pub fn of(text: &str) -> Option<(Self, Way)> {
        let said = |way: &Way| text.ends_with(way.end());
        let way = [Way::Reply, Way::Untracked].into_iter().find(said).unwrap_or(Way::Original);
        let word = text.strip_suffix(way.end())?;
        Some((Self::ALL.into_iter().find(|reason| reason.word() == word)?, way))
    }

    fn text(self, way: Way) -> String {
        format!("{}{}", self.word(), way.end())
    }

    /// The chains that count packets that are dropped for it.
    #[must_use]
    pub fn chains(self) -> Vec<String> {
        let denial = |direction| Read::BOTH.map(|read| read.side(&deny(direction))).to_vec();
        match self {
            Self::Ingress => denial(Direction::Ingress),
            Self::Egress => denial(Direction::Egress),
            Self::Invalid => vec!["invalid_drop".to_owned()],
            Self::Midstream => vec!["midstream_drop".to_owned()],
        }
    }

    /// The direction of the policies; `None` where it is not theirs alone.
    #[must_use]
    pub fn direction(self) -> Option<Direction> {
        match self {
            Self::Ingress => Some(Direction::Ingress),
            Self::Egress => Some(Direction::Egress),
            Self::Invalid | Self::Midstream => None,
        }
    }

    /// As it is logged, but for its [`Way`].
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ingress => "causeway ingress",
            Self::Egress => "causeway egress",
            Self::Invalid => "causeway invalid",
            Self::Midstream => "causeway midstream",
        }
    }
}

/// The two directions with the words that names begin with.
pub(crate) fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

pub(crate) fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// The map from pods' addresses to programs.
pub(crate) fn map(direction: Direction, family: Family, read: Read) -> String {
    read.side(&format!("{}{}", word(direction), digit(family)))
}

/// The set of pods with policies.
pub(crate) fn isolated(family: Family) -> String {
    format!("isolated{}", digit(family))
}

/// The set of pairs of an address with itself.
pub(crate) fn itself(family: Family) -> String {
    format!("itself{}", digit(family))
}

/// The chain that ends what is not allowed.
pub(crate) fn deny(direction: Direction) -> String {
    format!("{}_deny", word(direction))
}

pub(crate) fn goto(chain: impl Into<String>) -> Stmt {
    Stmt::Verdict(Verdict::Goto(chain.into()))
}

pub(crate) fn rule(stmts: impl Into<Vec<Stmt>>) -> Rule {
    Rule { stmts: stmts.into(), comment: None }
}

pub(crate) fn chain(rules: Vec<Rule>) -> Chain {
    Chain { base: None, rules }
}

pub(crate) fn state(bits: u32) -> Stmt {
    Stmt::is(Field::CtState, KeyPart::CtState(bits))
}

fn base(hook: Hook, rules: Vec<Rule>) -> Chain {
    let (kind, policy) = (ChainType::Filter, Policy::Accept);
    Chain { base: Some(Base { kind, hook, priority: 0, device: None, policy }), rules }
}

/// Where a packet's ends are read.
#[derive(Clone, Copy)]
pub(crate) enum Read {
    /// In its connection.
    Connection,
    /// In its header.
    Header,
}

impl Read {
    pub(crate) const BOTH: [Self; 2] = [Self::Connection, Self::Header];

    /// The name of a chain or map for such packets.
    pub(crate) fn side(self, chain: &str) -> String {
        match self {
            Self::Connection => format!("{chain}_t"),
            Self::Header => format!("{chain}_u"),
        }
    }

    /// The end at which policies of a direction are.
    pub(crate) fn own(self, direction: Direction, family: Family) -> Field {
        match direction {
            Direction::Ingress => self.server(family),
            Direction::Egress => self.client(family),
        }
    }

    /// The other end.
    pub(crate) fn peer(self, direction: Direction, family: Family) -> Field {
        match direction {
            Direction::Ingress => self.client(family),
            Direction::Egress => self.server(family),
        }
    }

    fn client(self, family: Family) -> Field {
        match self {
            Self::Connection => Field::CtClient(family),
            Self::Header => Field::Saddr(family),
        }
    }

    fn server(self, family: Family) -> Field {
        match self {
            Self::Connection => Field::CtServer(family),
            Self::Header => Field::Daddr(family),
        }
    }

    pub(crate) fn protocol(self) -> Field {
        match self {
            Self::Connection => Field::CtProtocol,
            Self::Header => Field::L4Proto,
        }
    }

    pub(crate) fn port(self) -> Field {
        match self {
            Self::Connection => Field::CtServerPort,
            Self::Header => Field::Dport,
        }
    }
}

/// The table of a node without pods that policies apply to.
pub(crate) fn table(mark: u32) -> NftTable {
    let mut table = NftTable::new(NftFamily::Inet, names::NFT_POLICY, true);
    for family in Family::BOTH {
        let address = KeyType::Addr(family);
        for direction in Direction::ALL {
            for read in Read::BOTH {
                table.sets.insert(map(direction, family, read), Set::vmap(address));
            }
        }
        table.sets.insert(isolated(family), Set::of(address, false));
        table.sets.insert(itself(family), Set::map(vec![address, address], vec![]));
    }
    let mut judged = Set::of(KeyType::Mark, false);
    judged.add(KeyPart::CtMark(mark), None);
    table.sets.insert(JUDGED.to_owned(), judged);
    let mut add = |name: &str, chain: Chain| {
        table.chains.insert(name.to_owned(), chain);
    };
    add("forward", base(Hook::Forward, forward()));
    add("input", base(Hook::Input, input()));
    add(JUDGE, chain(judge(mark)));
    add("untracked", chain(dispatch(Read::Header, &[Direction::Egress, Direction::Ingress])));
    add("judge_input", chain(dispatch(Read::Connection, &[Direction::Egress])));
    add("untracked_input", chain(dispatch(Read::Header, &[Direction::Egress])));
    add("midstream", chain(midstream()));
    add("invalid", chain(at_isolated("invalid_drop")));
    add("invalid_drop", chain(vec![log(Reason::Invalid), drop()]));
    add("midstream_drop", chain(vec![log(Reason::Midstream), drop()]));
    for direction in Direction::ALL {
        let name = deny(direction);
        for read in Read::BOTH {
            add(&read.side(&name), chain(denial(direction, read)));
        }
        add(&name, chain(choice(&name)));
    }
    table
}

/// What is between other ends than the node itself.
fn forward() -> Vec<Rule> {
    let tcp = Stmt::is(Field::L4Proto, KeyPart::Proto(TCP));
    let no_syn = Stmt::is(Field::TcpFlags, Rhs::Bits { mask: SYN, value: 0 });
    // A connection that another one has brought about has its mark, and is yet to be judged: it is no established one.
    let judged = Stmt::lookup([Field::CtMark], MatchOp::Eq, JUDGED);
    let pass = Stmt::Verdict(Verdict::Accept);
    vec![
        Rule::new("judged since the last change", [state(ESTABLISHED), judged, pass]),
        Rule::new(
            "in the middle of an unknown connection",
            [state(NEW), tcp, no_syn, Stmt::Verdict(Verdict::Jump("midstream".to_owned()))],
        ),
        // By one rule alone: whatever it leads to the kernel follows from each rule that leads there.
        Rule::new("each packet, not the first alone", [state(KNOWN | NEW), goto(JUDGE)]),
        rule([state(INVALID), goto("invalid")]),
        Rule::new("no connection: by its own header", [goto("untracked")]),
    ]
}

/// What pods send to their own node. What the node sends to them passes no hook of ours, and nor do their
/// answers to it.
fn input() -> Vec<Rule> {
    let reply = Stmt::is(Field::CtDirection, KeyPart::CtDirection(1));
    let neighbours = Stmt::is(Field::L4Proto, KeyPart::Proto(ICMPV6));
    vec![
        Rule::new("the node opened it", [reply, Stmt::Verdict(Verdict::Accept)]),
        rule([state(KNOWN | NEW), goto("judge_input")]),
        Rule::new(
            "neighbour discovery is not tracked",
            [state(UNTRACKED), neighbours, Stmt::Verdict(Verdict::Accept)],
        ),
        rule([state(UNTRACKED), goto("untracked_input")]),
    ]
}

/// The rules of a chain that elements lead to.
pub(crate) fn choice(chain: &str) -> Vec<Rule> {
    let [tracked, untracked] = Read::BOTH.map(|read| goto(read.side(chain)));
    vec![rule([state(UNTRACKED), untracked]), rule([tracked])]
}

fn judge(mark: u32) -> Vec<Rule> {
    let mut rules = dispatch(Read::Connection, &[Direction::Egress, Direction::Ingress]);
    let marked = Stmt::is_not(Field::CtMark, KeyPart::CtMark(0));
    let bits = Rhs::Bits { mask: MARK_MASK, value: MARK };
    let foreign = [marked, Stmt::is_not(Field::CtMark, bits), Stmt::Verdict(Verdict::Return)];
    rules.push(Rule::new("others have marked it", foreign));
    rules.push(mark_rule(mark));
    rules
}

fn dispatch(read: Read, directions: &[Direction]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for direction in directions {
        for family in Family::BOTH {
            let fields = vec![read.own(*direction, family)];
            rules.push(rule([Stmt::Vmap { fields, map: map(*direction, family, read) }]));
        }
    }
    rules
}

/// A client's packet says by its ports who the client is: it becomes the first of the connection that is known.
/// Taken for that, a server's packet would turn the connection round, and other rules would be asked.
fn midstream() -> Vec<Rule> {
    let is = |field, value| Stmt::is(field, Rhs::Bits { mask: EPHEMERAL, value });
    let back = Stmt::Verdict(Verdict::Return);
    let client = [is(Field::Sport, EPHEMERAL), is(Field::Dport, 0), back];
    let mut rules = vec![Rule::new("from a client, by its ports", client)];
    rules.extend(at_isolated("midstream_drop"));
    rules
}

/// Where policies apply to one of the ends.
fn at_isolated(to: &str) -> Vec<Rule> {
    let at = |field: fn(Family) -> Field, family| {
        rule([Stmt::lookup([field(family)], MatchOp::Eq, isolated(family)), goto(to)])
    };
    Family::BOTH.into_iter().flat_map(|f| [at(Field::Saddr, f), at(Field::Daddr, f)]).collect()
}

/// What nothing allows, but what a pod sends itself.
fn denial(direction: Direction, read: Read) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let both = vec![read.client(family), read.server(family)];
        let pair = Stmt::lookup(both, MatchOp::Eq, itself(family));
        rules.push(Rule::new("to itself", [pair, Stmt::Verdict(Verdict::Return)]));
    }
    let reason = match direction {
        Direction::Ingress => Reason::Ingress,
        Direction::Egress => Reason::Egress,
    };
    match read {
        Read::Connection => {
            let is = |direction| Stmt::is(Field::CtDirection, KeyPart::CtDirection(direction));
            for (number, way) in [(0, Way::Original), (1, Way::Reply)] {
                rules.push(rule([vec![is(number)], logged(reason.text(way))].concat()));
            }
        }
        Read::Header => rules.push(rule(logged(reason.text(Way::Untracked)))),
    }
    rules.push(drop());
    rules
}

fn log(reason: Reason) -> Rule {
    rule(logged(reason.text(Way::Original)))
}

fn logged(prefix: String) -> Vec<Stmt> {
    let group = LOG_GROUP;
    vec![Stmt::Limit { rate: LOGGED }, Stmt::Log { group, prefix, snaplen: LOG_BYTES }]
}

fn drop() -> Rule {
    rule([Stmt::Counter, Stmt::Verdict(Verdict::Drop)])
}
