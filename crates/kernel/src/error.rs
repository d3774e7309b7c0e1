//! What can go wrong between us and the kernel.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use causeway_model::Key;

/// The kernel's answer to a request that it did not carry out: the error number and, where the
/// kernel gave one, its own words (extended acknowledgement, `NLMSGERR_ATTR_MSG`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `errno`, positive.
    pub errno: i32,
    /// The kernel's message.
    pub message: Option<String>,
}

impl Refusal {
    /// A refusal without words.
    pub fn new(errno: i32) -> Self {
        Self { errno, message: None }
    }

    /// True for the errors that say that the object, or the device that it belongs to, is not
    /// there.
    pub fn is_gone(&self) -> bool {
        matches!(
            self.errno,
            libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = io::Error::from_raw_os_error(self.errno);
        match &self.message {
            Some(words) => write!(f, "{} ({plain})", words.trim_end_matches('.')),
            None => write!(f, "{plain}"),
        }
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A socket could not be opened, set up, written or read.
    #[error("{what}: {source}")]
    Socket {
        /// What was being done.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{what}: {refusal}")]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        refusal: Refusal,
    },
    /// The kernel lost messages because our receive buffer was full (ENOBUFS): what is known
    /// is incomplete.
    #[error("{what}: the kernel lost messages because the receive buffer was full; ask again")]
    Overrun {
        /// What was being read.
        what: &'static str,
    },
    /// A table changed during each of several dumps (NLM_F_DUMP_INTR).
    #[error("{what}: changed while it was read, {tries} times in a row; try again later")]
    Interrupted {
        /// What was being read.
        what: &'static str,
        /// How often it was read.
        tries: u32,
    },
    /// An answer that does not have the form that the kernel's headers promise.
    #[error("{what}: cannot read the kernel's answer: {why}")]
    Decode {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A network namespace could not be opened, entered, made or removed.
    #[error("network namespace {path:?}: {what}: {source}")]
    Netns {
        /// Its path.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A kernel parameter could not be read or written.
    #[error("sysctl {path}: {why}")]
    Sysctl {
        /// Path below `/proc/sys`.
        path: String,
        /// What is wrong and what to do.
        why: String,
        /// `errno`.
        errno: Option<i32>,
    },
    /// No interface of this name.
    #[error("no interface {name} in this network namespace")]
    NoLink {
        /// The name.
        name: String,
    },
    /// A request that the kernel has no way to say.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    pub(crate) fn socket(what: &'static str, source: impl Into<io::Error>) -> Self {
        Error::Socket { what, source: source.into() }
    }

    pub(crate) fn refused(what: impl Into<String>, refusal: Refusal) -> Self {
        Error::Refused { what: what.into(), refusal }
    }

    pub(crate) fn netns(path: &Path, what: &'static str, source: impl Into<io::Error>) -> Self {
        Error::Netns { path: path.to_owned(), what, source: source.into() }
    }

    /// `errno`, where the error came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Socket { source, .. } | Error::Netns { source, .. } => source.raw_os_error(),
            Error::Refused { refusal, .. } => Some(refusal.errno),
            Error::Sysctl { errno, .. } => *errno,
            Error::NoLink { .. } => Some(libc::ENODEV),
            Error::Overrun { .. } => Some(libc::ENOBUFS),
            Error::Interrupted { .. } | Error::Decode { .. } | Error::Invalid(_) => None,
        }
    }
}

/// An operation that failed: about which object, what was attempted, what the kernel said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpError {
    /// The object.
    pub key: Key,
    /// What was attempted, in a few words (`create`, `change`, `remove`, `nft transaction step 3`).
    pub attempted: String,
    /// `errno`; `None` where the request never reached the kernel.
    pub errno: Option<i32>,
    /// The kernel's own message, or ours where the kernel said nothing.
    pub message: String,
}

impl OpError {
    /// From the kernel's refusal.
    pub fn refused(key: Key, attempted: impl Into<String>, refusal: &Refusal) -> Self {
        Self {
            key,
            attempted: attempted.into(),
            errno: Some(refusal.errno),
            message: refusal.to_string(),
        }
    }

    /// From any other error of this crate.
    pub fn other(key: Key, attempted: impl Into<String>, error: &Error) -> Self {
        Self { key, attempted: attempted.into(), errno: error.errno(), message: error.to_string() }
    }

    /// True when the object was there already (EEXIST).
    pub fn is_exists(&self) -> bool {
        self.errno == Some(libc::EEXIST)
    }

    /// True when the object, or its device, is not there.
    pub fn is_gone(&self) -> bool {
        self.errno.is_some_and(|e| Refusal::new(e).is_gone())
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: cannot {}: {}", self.key, self.attempted, self.message)
    }
}

impl std::error::Error for OpError {}
