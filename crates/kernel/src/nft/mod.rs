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
use crate::sock::{ACK, Bus, ECHO, Reply, Request, Socket};
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
    last: Option<Last>,
}

/// The last rule of a chain, as the kernel told when it was put there.
#[derive(Debug)]
struct Last {
    table: TableId,
    chain: String,
    /// `NFTA_RULE_HANDLE`.
    handle: u64,
    /// The generation that the rule set had then: as long as it has it, nobody has changed anything.
    generation: u32,
}

/// What the kernel tells of a transaction that asked for it.
#[derive(Debug, Default)]
struct Echo {
    generation: Option<u32>,
    /// Rules that were put in: their chains and numbers.
    rules: Vec<(String, u64)>,
}

impl Nft {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { sock: Socket::open(Bus::Netfilter)?, last: None })
    }

    /// For another namespace.
    ///
    /// # Errors
    /// As [`Nft::open`], and when the namespace cannot be entered.
    pub fn open_in(ns: &NetNs) -> Result<Self, Error> {
        Ok(Self { sock: Socket::open_in(Bus::Netfilter, ns)?, last: None })
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
                    if is_interrupted(&refusal) && attempt + 1 < TRIES => {}
                Err(failure) => return Err(failed(key(), ops, failure)),
            }
        }
        Ok(())
    }

    fn transaction(&mut self, table: &TableId, ops: &[NftOp]) -> Result<(), Failure> {
        let is_for =
            |last: &Last| last.table == *table && !ops.iter().any(|op| moves(op, &last.chain));
        let known = self.last.take().filter(is_for);
        let (mut generation, mut put) = (None, Vec::new());
        let mut steps = Vec::with_capacity(ops.len());
        for op in ops {
            let last = match op {
                NftOp::SetLastRule { chain, .. } => {
                    put.push(chain);
                    match &known {
                        Some(known) if known.chain == *chain => {
                            generation = Some(known.generation);
                            Some(known.handle)
                        }
                        _ => read::last_rule(&mut self.sock, table, chain)
                            .map_err(Failure::Socket)?,
                    }
                }
                _ => None,
            };
            steps.push(encode::step(table, op, last));
        }
        let requests = numbered(steps);
        if put.is_empty() && known.is_none() || put.len() > 1 {
            return self.commit(requests, generation);
        }
        let told = self.commit_with(requests, generation, true)?;
        let number = |chain: &String| {
            let (chain, handle) = told.rules.iter().find(|(of, _)| of == chain)?.clone();
            Some((table.clone(), chain, handle))
        };
        let last = match put.first() {
            Some(chain) => number(chain),
            None => known.map(|known| (known.table, known.chain, known.handle)),
        };
        let last = last.zip(told.generation);
        self.last = last.map(|((table, chain, handle), generation)| Last {
            table,
            chain,
            handle,
            generation,
        });
        Ok(())
    }

    /// Sends the messages of several steps, to be carried out all or none; with a generation only
    /// while the rule set is still of that.
    fn commit_steps(
        &mut self,
        steps: Vec<Vec<Request>>,
        generation: Option<u32>,
    ) -> Result<(), Failure> {
        self.commit(numbered(steps), generation)
    }

    /// Sends messages as one transaction; each belongs to a step.
    fn commit(
        &mut self,
        steps: Vec<(Option<usize>, Request)>,
        generation: Option<u32>,
    ) -> Result<(), Failure> {
        self.commit_with(steps, generation, false).map(drop)
    }

    /// As [`Self::commit`]. `echo`: the kernel is to tell of the generation that it makes, which it does if the first
    /// message behind the beginning asks for it (`nf_tables_gen_notify`); of rules it tells where theirs do.
    fn commit_with(
        &mut self,
        steps: Vec<(Option<usize>, Request)>,
        generation: Option<u32>,
        echo: bool,
    ) -> Result<Echo, Failure> {
        let begin = Body::batch(generation);
        let mut requests = vec![Request { kind: msg::BATCH_BEGIN, flags: 0, body: begin }];
        // Which step each message belongs to.
        let mut owner = vec![None];
        for (number, request) in steps {
            owner.push(number);
            requests.push(request);
        }
        if let (true, Some(first)) = (echo, requests.get_mut(1)) {
            first.flags |= ECHO;
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
        let mut told = Echo::default();
        loop {
            let datagram = self.sock.receive().map_err(Failure::Socket)?;
            let mut over = false;
            for reply in Reply::split(datagram).filter(|r| range.contains(&r.seq)) {
                let number = (reply.seq - first) as usize;
                let Some(outcome) = reply.outcome() else {
                    match reply.kind {
                        msg::NEWRULE => told.rules.extend(read::place(&reply)),
                        msg::NEWGEN => told.generation = read::generation(&reply),
                        _ => {}
                    }
                    continue;
                };
                match outcome {
                    Err(refusal) if failed.as_ref().is_none_or(|(n, _)| number < *n) => {
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
            None => Ok(told),
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
        let read = |reply: Reply<'_>| read::generation(&reply);
        Ok(self.sock.get("read the generation of nftables", request, read)?.unwrap_or(0))
    }
}

/// Messages with the numbers of their steps.
fn numbered(steps: Vec<Vec<Request>>) -> Vec<(Option<usize>, Request)> {
    let steps = steps.into_iter().enumerate();
    steps.flat_map(|(number, some)| some.into_iter().map(move |one| (Some(number), one))).collect()
}

/// The rule set was another's turn, or is of another generation.
fn is_interrupted(refusal: &Refusal) -> bool {
    [libc::EINTR, libc::ERESTART].contains(&refusal.errno)
}

/// Whether another rule may be a chain's last one behind a step.
fn moves(op: &NftOp, chain: &str) -> bool {
    match op {
        NftOp::AddTable | NftOp::DelTable => true,
        NftOp::AddChain { name, .. } | NftOp::FlushChain { name } | NftOp::DelChain { name } => {
            name == chain
        }
        NftOp::AddRule { chain: of, .. } => of == chain,
        _ => false,
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
