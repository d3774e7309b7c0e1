//! What connections are by: protocols with ports, and the rest.

use std::fmt;
use std::ops::RangeInclusive;

/// A protocol whose ports policies can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its number (`IPPROTO_*`).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// As the API writes it (`TCP`); `None` for anything else.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What a connection is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// To a port of the destination.
    Port(Protocol, u16),
    /// ICMP, and every other protocol without ports that policies know: rules without ports alone
    /// allow it.
    Other,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{protocol}/{port}"),
            Self::Other => f.write_str("protocols without ports"),
        }
    }
}

/// `tcp/80`, `80/tcp`, `80` (TCP), `icmp`.
impl std::str::FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "port {text:?}: expected a number (1 to 65535), with /tcp, /udp or /sctp, or icmp"
            )
        };
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Self::Other);
        }
        let (protocol, port) = match text.split_once('/') {
            Some((a, b)) => match Protocol::named(&a.to_uppercase()) {
                Some(protocol) => (protocol, b),
                None => (Protocol::named(&b.to_uppercase()).ok_or_else(wrong)?, a),
            },
            None => (Protocol::Tcp, text),
        };
        match port.parse() {
            Ok(0) | Err(_) => Err(wrong()),
            Ok(port) => Ok(Self::Port(protocol, port)),
        }
    }
}

/// A set of what connections may be by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet {
    /// By protocol: ascending, with gaps between them, both ends among them.
    ranges: [Vec<(u16, u16)>; 3],
    other: bool,
}

impl PortSet {
    /// Nothing.
    pub const NONE: Self = Self { ranges: [Vec::new(), Vec::new(), Vec::new()], other: false };

    /// Nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::NONE
    }

    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        let all = || vec![(0, u16::MAX)];
        Self { ranges: [all(), all(), all()], other: true }
    }

    /// Ports of one protocol.
    #[must_use]
    pub fn of(protocol: Protocol, ports: RangeInclusive<u16>) -> Self {
        let mut set = Self::none();
        if !ports.is_empty() {
            set.ranges[protocol as usize].push((*ports.start(), *ports.end()));
        }
        set
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_none(&self) -> bool {
        !self.other && self.ranges.iter().all(Vec::is_empty)
    }

    /// Whether everything is in it.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::all()
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(&self, transport: Transport) -> bool {
        match transport {
            Transport::Port(protocol, port) => {
                self.ranges[protocol as usize].iter().any(|(a, b)| (*a..=*b).contains(&port))
            }
            Transport::Other => self.other,
        }
    }

    /// The ranges of a protocol, ascending.
    pub fn ranges(&self, protocol: Protocol) -> impl Iterator<Item = RangeInclusive<u16>> {
        self.ranges[protocol as usize].iter().map(|(a, b)| *a..=*b)
    }

    /// Whether protocols without ports are in it.
    #[must_use]
    pub fn has_other(&self) -> bool {
        self.other
    }

    /// What is in one of both.
    #[must_use]
    pub fn or(&self, more: &Self) -> Self {
        self.with(more, self.other || more.other, |a, b| a || b)
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, more: &Self) -> Self {
        self.with(more, self.other && more.other, |a, b| a && b)
    }

    /// What is in this one alone.
    #[must_use]
    pub fn minus(&self, less: &Self) -> Self {
        self.with(less, self.other && !less.other, |a, b| a && !b)
    }

    fn with(&self, second: &Self, other: bool, keep: impl Fn(bool, bool) -> bool) -> Self {
        let of = |i: usize| merge(&self.ranges[i], &second.ranges[i], &keep);
        Self { ranges: [of(0), of(1), of(2)], other }
    }
}

/// Sweeps over two lists of ranges: where one of them begins or ends, something may change.
fn merge(a: &[(u16, u16)], b: &[(u16, u16)], keep: impl Fn(bool, bool) -> bool) -> Vec<(u16, u16)> {
    let edges = |list: &[(u16, u16)]| -> Vec<u32> {
        list.iter().flat_map(|(from, to)| [u32::from(*from), u32::from(*to) + 1]).collect()
    };
    let (ea, eb) = (edges(a), edges(b));
    let mut all: Vec<u32> = ea.iter().chain(&eb).copied().collect();
    all.sort_unstable();
    all.dedup();
    // Behind an odd number of edges one is within a range.
    let within = |edges: &[u32], at: u32| edges.partition_point(|e| *e <= at) % 2 == 1;
    let mut kept: Vec<(u16, u16)> = Vec::new();
    for pair in all.windows(2) {
        let (from, to) = (pair[0], pair[1] - 1);
        if !keep(within(&ea, from), within(&eb, from)) {
            continue;
        }
        let (from, to) = (port(from), port(to));
        match kept.last_mut() {
            Some(last) if u32::from(last.1) + 1 == u32::from(from) => last.1 = to,
            _ => kept.push((from, to)),
        }
    }
    kept
}

fn port(n: u32) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// `tcp/80,443,8000-8080 udp/53`, `everything`, `nothing`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("everything");
        }
        if self.is_none() {
            return f.write_str("nothing");
        }
        let mut parts = Vec::new();
        for protocol in Protocol::ALL {
            let ranges = &self.ranges[protocol as usize];
            match ranges.as_slice() {
                [] => {}
                [(0, u16::MAX)] => parts.push(protocol.to_string()),
                ranges => {
                    let one = |(a, b): &(u16, u16)| match a == b {
                        true => a.to_string(),
                        false => format!("{a}-{b}"),
                    };
                    let all: Vec<String> = ranges.iter().map(one).collect();
                    parts.push(format!("{protocol}/{}", all.join(",")));
                }
            }
        }
        if self.other {
            parts.push("protocols without ports".to_owned());
        }
        f.write_str(&parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_as_people_read_it() {
        let web = PortSet::of(Protocol::Tcp, 443..=443)
            .or(&PortSet::of(Protocol::Tcp, 80..=80))
            .or(&PortSet::of(Protocol::Udp, 53..=60));
        assert_eq!(web.to_string(), "tcp/80,443 udp/53-60");
        assert_eq!(PortSet::all().to_string(), "everything");
        assert_eq!(PortSet::none().to_string(), "nothing");
        let rest = PortSet::all().minus(&PortSet::of(Protocol::Tcp, 0..=u16::MAX));
        assert_eq!(rest.to_string(), "udp sctp protocols without ports");
        let all_but = PortSet::all().minus(&PortSet::of(Protocol::Tcp, 22..=22));
        assert_eq!(all_but.to_string(), "tcp/0-21,23-65535 udp sctp protocols without ports");
    }

    #[test]
    fn ports_are_read() {
        for (text, want) in [
            ("80", Transport::Port(Protocol::Tcp, 80)),
            ("udp/53", Transport::Port(Protocol::Udp, 53)),
            ("132/SCTP", Transport::Port(Protocol::Sctp, 132)),
            ("icmp", Transport::Other),
        ] {
            assert_eq!(text.parse::<Transport>().unwrap(), want);
        }
        for text in ["", "0", "65536", "tcp/", "80/http", "-1"] {
            assert!(text.parse::<Transport>().unwrap_err().contains("expected a number"), "{text}");
        }
    }

    fn set() -> impl Strategy<Value = PortSet> {
        let edge = prop_oneof![0..12u16, Just(u16::MAX - 1), Just(u16::MAX)];
        let range = (0..3usize, edge.clone(), edge)
            .prop_map(|(protocol, a, b)| PortSet::of(Protocol::ALL[protocol], a.min(b)..=a.max(b)));
        (vec(range, 0..6), any::<bool>()).prop_map(|(ranges, other)| {
            let start = PortSet { other, ..PortSet::none() };
            ranges.iter().fold(start, |all, one| all.or(one))
        })
    }

    proptest! {
        #[test]
        fn sets_are_sets(a in set(), b in set()) {
            let ports = (0..14).chain([u16::MAX - 1, u16::MAX]);
            let all = ports
                .flat_map(|port| Protocol::ALL.map(|protocol| Transport::Port(protocol, port)))
                .chain([Transport::Other]);
            for t in all {
                let (in_a, in_b) = (a.contains(t), b.contains(t));
                prop_assert_eq!(a.or(&b).contains(t), in_a || in_b);
                prop_assert_eq!(a.and(&b).contains(t), in_a && in_b);
                prop_assert_eq!(a.minus(&b).contains(t), in_a && !in_b);
            }
            // One way to write a set.
            prop_assert_eq!(a.or(&b), b.or(&a));
            prop_assert_eq!(a.minus(&b).or(&a.and(&b)), a.clone());
            for protocol in Protocol::ALL {
                let ranges: Vec<_> = a.ranges(protocol).collect();
                prop_assert!(ranges.windows(2).all(|w| u32::from(*w[0].end()) + 1 < u32::from(*w[1].start())));
            }
        }
    }
}
