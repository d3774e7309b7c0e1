//! Notes on what a chained plugin keeps for an attachment outside its namespace, one file per
//! attachment and type: written before anything is made, erased when all of it is gone. With them
//! DEL and GC know what to remove without the result of ADD, at a cost that does not grow with the
//! number of attachments.

use std::path::{Path, PathBuf};

use causeway_cni_spec::CniError;
use causeway_ipam::Owner;
use causeway_kernel::NetNs;
use causeway_types::names;
use causeway_types::state::AttachmentRecord;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::adds::Adds;
use crate::call::Call;
use crate::files::{self, Planned};
use crate::host_local::valid_owners;
use crate::leftovers::Look;
use crate::paths::Paths;
use crate::record;
use crate::space::Space;

/// How notes out of their places are called.
const OVER: &str = ".over";

/// Whose note it is, and whether that one still lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Whose {
    /// Container ID.
    pub container_id: String,
    /// Interface in the container.
    pub ifname: String,
    /// Network.
    pub network: String,
    /// Path of the container's namespace.
    pub netns: String,
    /// The boot in which it was written.
    pub boot_id: String,
}

impl Whose {
    /// The attachment of a call.
    ///
    /// # Errors
    /// Code 5 when the boot ID cannot be read.
    pub(crate) fn of(call: &Call) -> Result<Self, CniError> {
        let netns = call.env.netns.as_deref().unwrap_or(Path::new(""));
        Ok(Self {
            container_id: call.env.container_id.clone(),
            ifname: call.env.ifname.clone(),
            network: call.conf.name.clone(),
            netns: netns.display().to_string(),
            boot_id: record::boot_id(&call.paths)?,
        })
    }

    /// True when its container can be no more: its namespace is gone, or it is from before the
    /// last boot.
    pub(crate) fn is_over(&self, boot_id: &str) -> bool {
        self.boot_id != boot_id || matches!(NetNs::find(Path::new(&self.netns)), Ok(None))
    }

    /// The mark of its elements in nftables, shown there as their comment.
    pub(crate) fn tag(&self) -> String {
        names::element_mark(&self.container_id, &self.ifname)
    }
}

/// The notes of one type.
#[derive(Clone, Debug)]
pub(crate) struct Notes {
    dir: PathBuf,
    adds: Adds,
}

/// A note.
pub(crate) trait Note: Serialize + DeserializeOwned {
    /// Whose it is.
    fn whose(&self) -> &Whose;
}

impl Notes {
    /// Beside the attachment records.
    pub(crate) fn at(paths: &Paths, of: &str) -> Self {
        Self { dir: paths.attachments.with_file_name(of), adds: Adds::at(paths) }
    }

    fn path(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.dir.join(AttachmentRecord::file_name(container_id, ifname))
    }

    /// The note of an attachment; `None` also for one that cannot be understood.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn read<N: Note>(
        &self,
        container_id: &str,
        ifname: &str,
    ) -> Result<Option<N>, CniError> {
        let content = files::read_state(&self.path(container_id, ifname))?;
        let note: Option<N> = content.and_then(|content| serde_json::from_slice(&content).ok());
        let of = |n: &N| n.whose().container_id == container_id && n.whose().ifname == ifname;
        Ok(note.filter(of))
    }

    /// Writes a note in place of an older one.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn write<N: Note>(&self, note: &N) -> Result<(), CniError> {
        files::make_dir(&self.dir, 0o700)?;
        let whose = note.whose();
        let content = serde_json::to_vec(note)
            .map_err(|e| CniError::internal(format!("cannot write down the attachment: {e}")))?;
        files::replace(&self.path(&whose.container_id, &whose.ifname), &content)
    }

    /// Erases a note; one that is not there is fine.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn remove(&self, container_id: &str, ifname: &str) -> Result<(), CniError> {
        let path = self.path(container_id, ifname);
        files::remove(&files::beside(&path))?;
        files::remove(&path)
    }

    /// Ends the attachments of the call's network that have a note and that GC does not name as
    /// valid. Not those of an ADD that has not ended.
    ///
    /// # Errors
    /// Code 5; code 7 when the runtime named nothing, not even an empty list. The first that `end`
    /// answers: the others are ended all the same.
    pub(crate) fn collect<N: Note>(
        &self,
        call: &Call,
        end: impl Fn(&N) -> Result<(), CniError>,
    ) -> Result<(), CniError> {
        let valid = valid_owners(call)?;
        let mut first = None;
        for note in self.all::<N>()? {
            let owner = Owner::new(&note.whose().container_id, &note.whose().ifname);
            if note.whose().network != call.conf.name || valid.contains(&owner) {
                continue;
            }
            let Some(_quiet) = self.adds.keep_out(&owner) else { continue };
            // Another ADD of the attachment may have ended meanwhile, with other content.
            let Some(note) = self.read::<N>(&owner.container_id, &owner.ifname)? else { continue };
            first = first.or(end(&note).err());
        }
        first.map_or(Ok(()), Err)
    }

    /// The files that a new note needs.
    pub(crate) fn files(&self) -> Vec<Planned> {
        vec![(self.dir.join("new"), true)]
    }

    /// Brings back what the other living attachments had in the kernel, after somebody took it all:
    /// `make` puts it there, `undo` takes it away again where DEL went by meanwhile, as its own last
    /// look does ([`Notes::ended`]). Answers what failed.
    pub(crate) fn bring_back<N: Note>(
        &self,
        node: &mut Space,
        boot_id: &str,
        but: Option<&Whose>,
        make: impl Fn(&mut Space, &N) -> Result<(), CniError>,
        undo: impl Fn(&mut Space, &N) -> Result<(), CniError>,
    ) -> Vec<String> {
        let mut failed = Vec::new();
        let all = self.all::<N>().unwrap_or_else(|e| {
            failed.push(format!("what other containers had: {e}"));
            Vec::new()
        });
        for note in all {
            let whose = note.whose();
            let (id, ifname) = (&whose.container_id, &whose.ifname);
            let is_but = but.is_some_and(|b| (id, ifname) == (&b.container_id, &b.ifname));
            if is_but || whose.is_over(boot_id) {
                continue;
            }
            let done = make(node, &note).and_then(|()| match self.read::<N>(id, ifname)? {
                Some(_) => Ok(()),
                None => undo(node, &note),
            });
            if let Err(e) = done {
                failed.push(format!("what container {id} ({ifname}) had: {e}"));
            }
        }
        failed
    }

    /// Removes notes on attachments that were over at the look before as well, and what they speak of by
    /// `take`. A container may be started anew under its name at this very moment: its note is written
    /// before anything is made, so that it is left alone, or found afterwards, and `make` puts there what
    /// `take` took of it.
    ///
    /// # Errors
    /// Codes 5 and 999 when too little can be read to judge.
    pub(crate) fn sweep_over<N: Note>(
        &self,
        look: &mut Look<'_>,
        what: &str,
        take: impl Fn(&mut Space, &N) -> Result<(), CniError>,
        make: impl Fn(&mut Space, &N) -> Result<(), CniError>,
    ) -> Result<(), CniError> {
        let mut due = self.claimed::<N>()?;
        for note in self.all::<N>()? {
            let whose = note.whose();
            let (id, ifname) = (&whose.container_id, &whose.ifname);
            let over = look.ends.is_over(look.node, (id, ifname), &whose.netns, &whose.boot_id)?;
            let content = text(&note);
            if over && look.is_due(content.clone()) && self.claim::<N>(id, ifname, &content)? {
                due.push(note);
            }
        }
        for note in due {
            let whose = note.whose();
            let (id, ifname) = (&whose.container_id, &whose.ifname);
            let mut outcome = take(look.node, &note);
            if let (Ok(()), Some(new)) = (&outcome, self.read::<N>(id, ifname)?) {
                outcome = make(look.node, &new);
            }
            // What failed is still out of its place at the next look.
            let outcome = outcome.and_then(|()| files::remove(&self.aside(id, ifname)));
            look.done(format!("{what} of container {id} ({ifname})"), outcome);
        }
        Ok(())
    }

    /// Where a note is while what it speaks of is removed.
    fn aside(&self, id: &str, ifname: &str) -> PathBuf {
        self.dir.join(format!(".{id}-{ifname}{OVER}"))
    }

    /// Takes a note out of its place; false where another is there by now, which stays.
    fn claim<N: Note>(&self, id: &str, ifname: &str, content: &str) -> Result<bool, CniError> {
        let (path, aside) = (self.path(id, ifname), self.aside(id, ifname));
        match std::fs::rename(&path, &aside) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => {
                let place = path.display();
                return Err(CniError::io(format!("cannot take {place} out of its place: {e}")));
            }
            Ok(()) => {}
        }
        let taken: Option<N> =
            files::read_state(&aside)?.and_then(|text| serde_json::from_slice(&text).ok());
        if taken.is_some_and(|taken| text(&taken) == content) {
            return Ok(true);
        }
        // Unless a newer one is there already.
        let _ = std::fs::hard_link(&aside, &path);
        files::remove(&aside)?;
        Ok(false)
    }

    /// Notes that somebody took out of their places and did not finish with.
    fn claimed<N: Note>(&self) -> Result<Vec<N>, CniError> {
        let mut all = Vec::new();
        for name in files::names(&self.dir)? {
            if name.ends_with(OVER) {
                let content = files::read_state(&self.dir.join(&name))?;
                all.extend(content.and_then(|c| serde_json::from_slice::<N>(&c).ok()));
            }
        }
        Ok(all)
    }

    /// Erases the note of an attachment of which `take` has taken all away. Where it found nothing it
    /// is asked once more: an ADD that brings everything back may have read the note before.
    ///
    /// # Errors
    /// Code 5; what `take` says.
    pub(crate) fn ended(
        &self,
        whose: &Whose,
        found: bool,
        take: impl FnOnce() -> Result<(), CniError>,
    ) -> Result<(), CniError> {
        self.remove(&whose.container_id, &whose.ifname)?;
        if found { Ok(()) } else { take() }
    }

    /// All notes that can be understood. What ADDs left that were killed while they wrote goes.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn all<N: Note>(&self) -> Result<Vec<N>, CniError> {
        let mut all = Vec::new();
        for name in files::names(&self.dir)? {
            self.adds.sweep_one(&self.dir, &name)?;
            if !name.ends_with(".json") || name.starts_with('.') {
                continue;
            }
            let content = files::read_state(&self.dir.join(&name))?;
            let note: Option<N> = content.and_then(|content| serde_json::from_slice(&content).ok());
            all.extend(note);
        }
        Ok(all)
    }
}

fn text(note: &impl Note) -> String {
    serde_json::to_string(note).unwrap_or_default()
}
