//! The kernel's own form of a rule: expressions over registers (`linux/netfilter/nf_tables.h`).

use causeway_types::Family;

use super::Verdict;

/// Register number of `nf_tables.h`: 1 is the first register of 16 bytes (NFT_REG_1), 8 and up
/// are registers of 4 bytes (NFT_REG32_00 …). A concatenation fills consecutive ones from 1.
pub type Reg = u32;

/// Where a payload offset counts from (`NFT_PAYLOAD_*_HEADER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadBase {
    /// Ethernet header.
    Link,
    /// IP or ARP header.
    Network,
    /// TCP, UDP, ICMP, … header.
    Transport,
}

/// `NFT_META_*` keys that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// EtherType, 2 bytes, network order.
    Protocol,
    /// Name of the incoming interface, 16 bytes.
    IifName,
    /// Name of the outgoing interface, 16 bytes.
    OifName,
    /// Hardware type of the incoming interface, 2 bytes, host order (ARPHRD_ETHER is 1).
    IifType,
    /// Family of the packet, 1 byte (2 IPv4, 10 IPv6).
    Nfproto,
    /// Transport protocol, 1 byte.
    L4Proto,
    /// The packet's mark, 4 bytes, host order.
    Mark,
}

/// `NFT_CT_*` keys that we use, with the direction that they are asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// Bits, 4 bytes, host order.
    State,
    /// The connection's mark, 4 bytes, host order.
    Mark,
    /// The packet's direction, 1 byte.
    Direction,
    /// Source of the original direction.
    Client(Family),
    /// Source of the reply direction.
    Server(Family),
    /// Transport protocol, 1 byte.
    Protocol,
    /// Source port of the reply direction, 2 bytes, network order.
    ServerPort,
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads a circumstance of the packet.
    Meta {
        /// What.
        key: MetaKey,
        /// Where to.
        dreg: Reg,
    },
    /// Loads bytes of the packet.
    Payload {
        /// Header.
        base: PayloadBase,
        /// Bytes from the header's start.
        offset: u32,
        /// Number of bytes.
        len: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Goes on when the register compares as asked.
    Cmp {
        /// Register.
        sreg: Reg,
        /// True: not equal.
        ne: bool,
        /// Bytes.
        data: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        /// From.
        sreg: Reg,
        /// To.
        dreg: Reg,
        /// Mask.
        mask: Vec<u8>,
        /// Flipped bits.
        xor: Vec<u8>,
    },
    /// Looks the register up in a set.
    Lookup {
        /// Register.
        sreg: Reg,
        /// Set or map.
        set: String,
        /// Goes on when it is not found.
        inverted: bool,
        /// The set is a verdict map, and its verdict is followed.
        verdict: bool,
    },
    /// Looks the register up in a map, and goes on with what is found.
    Map {
        /// Register.
        sreg: Reg,
        /// Map.
        map: String,
        /// Where the data goes.
        dreg: Reg,
    },
    /// Sets the packet's mark from a register.
    SetMark {
        /// Register.
        sreg: Reg,
    },
    /// Sets the connection's mark from a register.
    SetCtMark {
        /// Register.
        sreg: Reg,
    },
    /// Destination translation.
    Dnat {
        /// Family of the address.
        family: Family,
        /// Register of the address.
        addr: Reg,
        /// Register of the port.
        port: Reg,
    },
    /// A verdict.
    Immediate(Verdict),
    /// Counts.
    Counter,
    /// Keeps the packet untracked.
    Notrack,
    /// Masquerades with `NF_NAT_RANGE_*` flags.
    Masq {
        /// Flags; 16 is fully random.
        flags: u32,
    },
    /// Looks the destination's route type up (`fib daddr type`).
    FibDaddrType {
        /// Where to, 4 bytes, host order.
        dreg: Reg,
    },
    /// Loads something of the packet's connection; the rule ends where it has none.
    Ct {
        /// What.
        key: CtKey,
        /// Where to.
        dreg: Reg,
    },
    /// Goes on for so many packets a second, and a burst of as many.
    Limit {
        /// Packets.
        rate: u32,
    },
    /// Hands the packet on.
    Log {
        /// To the listeners of this group.
        group: u16,
        /// With this text.
        prefix: String,
        /// And so many of its bytes.
        snaplen: u32,
    },
    /// Anything else, by its name.
    Unknown(String),
}
