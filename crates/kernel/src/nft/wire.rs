//! Bytes of nfnetlink messages (`linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`).

/// Message types of the subsystem nftables (`NFNL_SUBSYS_NFTABLES` is 10).
pub(super) mod msg {
    const SUBSYSTEM: u16 = 10 << 8;
    pub(in super::super) const NEWTABLE: u16 = SUBSYSTEM;
    pub(in super::super) const GETTABLE: u16 = SUBSYSTEM | 1;
    pub(in super::super) const DELTABLE: u16 = SUBSYSTEM | 2;
    pub(in super::super) const NEWCHAIN: u16 = SUBSYSTEM | 3;
    pub(in super::super) const GETCHAIN: u16 = SUBSYSTEM | 4;
    pub(in super::super) const DELCHAIN: u16 = SUBSYSTEM | 5;
    pub(in super::super) const NEWRULE: u16 = SUBSYSTEM | 6;
    pub(in super::super) const GETRULE: u16 = SUBSYSTEM | 7;
    pub(in super::super) const DELRULE: u16 = SUBSYSTEM | 8;
    pub(in super::super) const NEWSET: u16 = SUBSYSTEM | 9;
    pub(in super::super) const GETSET: u16 = SUBSYSTEM | 10;
    pub(in super::super) const DELSET: u16 = SUBSYSTEM | 11;
    pub(in super::super) const NEWSETELEM: u16 = SUBSYSTEM | 12;
    pub(in super::super) const GETSETELEM: u16 = SUBSYSTEM | 13;
    pub(in super::super) const DELSETELEM: u16 = SUBSYSTEM | 14;
    pub(in super::super) const NEWGEN: u16 = SUBSYSTEM | 15;
    pub(in super::super) const GETGEN: u16 = SUBSYSTEM | 16;
    /// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
    pub(in super::super) const BATCH_BEGIN: u16 = 0x10;
    pub(in super::super) const BATCH_END: u16 = 0x11;
}

const NESTED: u16 = 0x8000;

/// A message body that grows attribute by attribute.
#[derive(Debug)]
pub(super) struct Body(Vec<u8>);

impl Body {
    /// Begins with `struct nfgenmsg`.
    pub(super) fn new(family: u8) -> Self {
        Self(vec![family, 0, 0, 0])
    }

    /// The header of a batch: the resource is the subsystem. With a generation
    /// (`NFNL_BATCH_GENID`) it is carried out only while the rule set is of that.
    pub(super) fn batch(generation: Option<u32>) -> Vec<u8> {
        let mut body = Self(vec![0, 0, 0, 10]);
        if let Some(generation) = generation {
            body.u32(1, generation);
        }
        body.done()
    }

    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = (4 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Numbers travel in network order.
    pub(super) fn u32(&mut self, kind: u16, number: u32) -> &mut Self {
        self.put(kind, &number.to_be_bytes())
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Body)) -> &mut Self {
        let mut inner = Body(Vec::new());
        fill(&mut inner);
        self.put(kind | NESTED, &inner.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn done(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Reads a number in network order.
pub(super) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

/// Reads a text up to its closing zero.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A comment as nft keeps it in user data: type 0, length, text with a closing zero.
pub(super) fn comment(text: &str) -> Vec<u8> {
    // The length is one byte, and nft takes at most 128.
    let mut end = text.len().min(127);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![0, (end + 1) as u8];
    bytes.extend_from_slice(&text.as_bytes()[..end]);
    bytes.push(0);
    bytes
}

/// Finds the comment in user data.
pub(super) fn comment_of(mut data: &[u8]) -> Option<String> {
    while let [kind, len, rest @ ..] = data {
        let value = rest.get(..usize::from(*len))?;
        if *kind == 0 {
            return Some(text(value));
        }
        data = &rest[usize::from(*len)..];
    }
    None
}
