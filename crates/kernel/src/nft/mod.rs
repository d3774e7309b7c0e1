//! nftables over nfnetlink: transactions, and reading tables back.

mod elements;
mod encode;
mod exprs;
pub mod foreign;
mod forward;
mod lookup;
mod read;
mod wire;

use causeway_model::Key;
use causeway_model::nft::{NftFamily, NftTable};
use causeway_plan::{NftOp, TableId};

use crate::netns::NetNs;
use crate::sock::{ACK, Bus, Reply, Request, Socket};
use crate::{Error, OpError, Refusal};
pub use forward::Forward;
pub use lookup::ElementId;
use wire::{Body, msg};

/// How often a transaction that met another one is sent again, and a table that changed while it
/// was read is read again.
const TRIES: u32 = 20;

/// A socket for the nftables of one network namespace.
#[derive(Debug)]
pub struct Nft {
    sock: Socket,
}

impl Nft {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { sock: Socket::open(Bus::Netfilter)? })
    }

    /// For another namespace.
    ///
    /// # Errors
    /// As [`Nft::open`], and when the namespace cannot be entered.
    pub fn open_in(ns: &NetNs) -> Result<Self, Error> {
        Ok(Self { sock: Socket::open_in(Bus::Netfilter, ns)? })
    }

    /// Who we are in [`crate::monitor::Event::Table`].
    ///
    /// # Errors
    /// When the socket does not tell.
    pub fn port(&self) -> Result<u32, Error> {
        self.sock.port()
    }

    /// Does all steps on one table, or none of them. A new table whose rules ask sets of prefixes gets its
    /// rules by a second transaction: the kernel fills such sets a moment after rules of the same
    /// transaction count (`nft_set_commit_update`), and meanwhile nothing would be in them.
    ///
    /// # Errors
    /// Which step the kernel refused, and its words. Nothing has changed then, but that a new table may be
    /// there without rules.
    pub fn apply(&mut self, table: &TableId, ops: &[NftOp]) -> Result<(), OpError> {
        let (first, rules) = ops.split_at(before_rules(ops));
        self.apply_at_once(table, first)?;
        self.apply_at_once(table, rules)
    }

    fn apply_at_once(&mut self, table: &TableId, ops: &[NftOp]) -> Result<(), OpError> {
        let key = || Key::Table { family: table.family, name: table.name.clone() };
        if ops.is_empty() {
            return Ok(());
        }
        for attempt in 0..TRIES {
            match self.transaction(table, ops) {
                Ok(()) => return Ok(()),
                // Another writer's transaction came in between (the generation changed).
                Err(Failure::Refused { refusal, .. })
                    if refusal.errno == libc::EINTR && attempt + 1 < TRIES => {}
                Err(failure) => return Err(failed(key(), ops, failure)),
            }
        }
        Ok(())
    }

    fn transaction(&mut self, table: &TableId, ops: &[NftOp]) -> Result<(), Failure> {
        let mut steps = Vec::with_capacity(ops.len());
        for op in ops {
            let last = match op {
                NftOp::SetLastRule { chain, .. } => {
                    read::last_rule(&mut self.sock, table, chain).map_err(Failure::Socket)?
                }
                _ => None,
            };
            steps.push(encode::step(table, op, last));
        }
        self.commit_steps(steps, None)
    }

    /// Sends the messages of several steps, to be carried out all or none; with a generation only
    /// while the rule set is still of that.
    fn commit_steps(
        &mut self,
        steps: Vec<Vec<Request>>,
        generation: Option<u32>,
    ) -> Result<(), Failure> {
        let numbered = steps.into_iter().enumerate().flat_map(|(number, some)| {
            some.into_iter().map(move |request| (Some(number), request))
        });
        self.commit(numbered.collect(), generation)
    }

    /// Sends messages as one transaction; each belongs to a step.
    fn commit(
        &mut self,
        steps: Vec<(Option<usize>, Request)>,
        generation: Option<u32>,
    ) -> Result<(), Failure> {
        let begin = Body::batch(generation);
        let mut requests = vec![Request { kind: msg::BATCH_BEGIN, flags: 0, body: begin }];
        // Which step each message belongs to.
        let mut owner = vec![None];
        for (number, request) in steps {
            owner.push(number);
            requests.push(request);
        }
        // The last one is answered in any case; the others only when they fail.
        if let Some(last) = requests.last_mut() {
            last.flags |= ACK;
        }
        let last = requests.len() - 1;
        requests.push(Request { kind: msg::BATCH_END, flags: 0, body: Body::batch(None) });
        let range = self.sock.send(&requests).map_err(Failure::Socket)?;
        let first = *range.start();
        let mut failed: Option<(usize, Refusal)> = None;
        loop {
            let datagram = self.sock.receive().map_err(Failure::Socket)?;
            let mut over = false;
            for reply in Reply::split(datagram).filter(|r| range.contains(&r.seq)) {
                let number = (reply.seq - first) as usize;
                match reply.outcome() {
                    Some(Err(refusal)) if failed.as_ref().is_none_or(|(n, _)| number < *n) => {
                        // A failed begin is the commit's failure, and nothing follows it.
                        over |= number == 0;
                        failed = Some((number, refusal));
                    }
                    _ => {}
                }
                over |= number == last;
            }
            if over {
                break;
            }
        }
        match failed {
            None => Ok(()),
            Some((number, refusal)) => {
                Err(Failure::Refused { step: owner.get(number).copied().flatten(), refusal })
            }
        }
    }

    /// Reads a table whole; `None` when there is none of the name. The picture is of one moment:
    /// when the rule set changed meanwhile it is taken again.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or never stands still.
    pub fn read_table(&mut self, family: NftFamily, name: &str) -> Result<Option<NftTable>, Error> {
        for _ in 0..TRIES {
            let before = self.genid()?;
            let table = read::table(&mut self.sock, family, name);
            if self.genid()? == before {
                return table;
            }
        }
        Err(Error::Interrupted { what: "read an nftables table", tries: TRIES })
    }

    /// What there is of a table that others share: of the chains and sets that `wanted` names, those
    /// that are there, chains with their rules, sets without their elements. The cost does not grow
    /// with the rest of the table. `None` when nothing of it is there.
    ///
    /// # Errors
    /// As [`Nft::read_table`].
    pub fn read_frame(&mut self, wanted: &NftTable) -> Result<Option<NftTable>, Error> {
        read::frame(&mut self.sock, wanted)
    }

    /// Whether anything beside its own rules holds a chain: rules or elements that lead there. False
    /// for one that is not there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_chain_used(&mut self, table: &NftTable, chain: &str) -> Result<bool, Error> {
        read::is_chain_used(&mut self.sock, table, chain)
    }

    /// The packets that the rules of a chain have counted since it was made or its rules were, all together; 0
    /// where there is no such chain.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn counted(&mut self, table: &TableId, chain: &str) -> Result<u64, Error> {
        read::counted(&mut self.sock, table.family, &table.name, chain)
    }

    /// The number of the rule set's generation: it changes with every transaction of anybody.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn genid(&mut self) -> Result<u32, Error> {
        let request = Request { kind: msg::GETGEN, flags: 0, body: Body::new(0).done() };
        let read =
            |reply: Reply<'_>| exprs::attribute(reply.body.get(4..)?, 1).and_then(wire::be32);
        Ok(self.sock.get("read the generation of nftables", request, read)?.unwrap_or(0))
    }
}

enum Failure {
    Socket(Error),
    Refused { step: Option<usize>, refusal: Refusal },
}

/// How many steps come before the rules of a new table with sets of prefixes; of any other, all.
fn before_rules(ops: &[NftOp]) -> usize {
    let new = matches!(ops.first(), Some(NftOp::AddTable));
    let prefixes = |op: &NftOp| matches!(op, NftOp::AddElements { of, .. } if of.interval);
    let rules = ops.iter().position(|op| matches!(op, NftOp::AddRule { .. }));
    rules.filter(|_| new && ops.iter().any(prefixes)).unwrap_or(ops.len())
}

/// A failure of a transaction in words.
fn failed(key: Key, ops: &[NftOp], failure: Failure) -> OpError {
    match failure {
        Failure::Refused { step: Some(step), refusal } => {
            let attempted = format!("do step {} of {}: {}", step + 1, ops.len(), word(&ops[step]));
            OpError::refused(key, attempted, &refusal)
        }
        Failure::Refused { step: None, refusal } => {
            OpError::refused(key, "commit the transaction", &refusal)
        }
        Failure::Socket(error) => OpError::other(key, "send the transaction", &error),
    }
}

fn word(op: &NftOp) -> String {
    match op {
        NftOp::AddTable => "add the table".to_owned(),
        NftOp::DelTable => "remove the table".to_owned(),
        NftOp::AddSet { name, .. } => format!("add the set {name}"),
        NftOp::DelSet { name } => format!("remove the set {name}"),
        NftOp::AddChain { name, .. } => format!("add the chain {name}"),
        NftOp::FlushChain { name } => format!("flush the chain {name}"),
        NftOp::DelChain { name } => format!("remove the chain {name}"),
        NftOp::AddRule { chain, rule } => {
            format!("add to the chain {chain}: {}", causeway_model::nft::text::rule(rule))
        }
        NftOp::SetLastRule { chain, rule } => {
            let rule = causeway_model::nft::text::rule(rule);
            format!("put in the place of the last rule of the chain {chain}: {rule}")
        }
        NftOp::AddElements { set, elements, .. } => {
            format!("add {} elements to the set {set}", elements.len())
        }
        NftOp::DelElements { set, elements, .. } => {
            format!("remove {} elements from the set {set}", elements.len())
        }
    }
}
