//! Network namespaces.
//!
//! A namespace is a property of a thread. Code runs in another one either on a thread of its own
//! that ends with it ([`NetNs::run`]), or for the life of a guard that cannot leave its thread
//! ([`NetNs::enter`]).

use std::fs::{self, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::Error;
use crate::sock::{Bus, REQUEST, Request, Socket};

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// File system of namespaces (`NSFS_MAGIC`, `linux/magic.h`).
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Where `ip netns` looks for names.
pub const NAMED_DIR: &str = "/run/netns";

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct NetNs {
    file: OwnedFd,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace at a path, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When nothing is there, or something that is not a namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        // A pipe in its place is not waited for.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let open = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = open.map_err(|e| Error::netns(path, "open", e))?;
        let kind = rustix::fs::fstatfs(&file).map_err(|e| Error::netns(path, "open", e))?.f_type;
        if kind as u64 != NSFS_MAGIC {
            let why = io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a namespace; a plain file is left where the namespace was unmounted",
            );
            return Err(Error::netns(path, "open", why));
        }
        Ok(Self { file: file.into(), path: path.to_owned() })
    }

    /// The same; `None` where no namespace is any more: nothing, or what is left when one was
    /// unmounted.
    ///
    /// # Errors
    /// When it cannot be told, for want of rights or descriptors: it may well be there.
    pub fn find(path: impl AsRef<Path>) -> Result<Option<Self>, Error> {
        use rustix::io::Errno;
        match Self::open(path) {
            Ok(found) => Ok(Some(found)),
            Err(Error::Netns { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
                Ok(None)
            }
            Err(e) => {
                let gone = [Errno::NOENT, Errno::NOTDIR, Errno::NXIO, Errno::LOOP];
                let gone = gone.iter().any(|g| e.errno() == Some(g.raw_os_error()));
                if gone { Ok(None) } else { Err(e) }
            }
        }
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(OWN)
    }

    /// Makes a namespace without a name; it goes with the last handle of it.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, and when the system has no room for another.
    pub fn unnamed() -> Result<Self, Error> {
        let make = || {
            unshare(UnshareFlags::NEWNET).map_err(|e| Error::netns(Path::new(OWN), "leave", e))?;
            Self::current()
        };
        std::thread::scope(|scope| scope.spawn(make).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode number: what tells it from every other namespace that exists now.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn id(&self) -> Result<(u64, u64), Error> {
        let stat =
            rustix::fs::fstat(&self.file).map_err(|e| Error::netns(&self.path, "identify", e))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// True when both are the same namespace.
    ///
    /// # Errors
    /// As [`NetNs::id`].
    pub fn same_as(&self, other: &NetNs) -> Result<bool, Error> {
        Ok(self.id()? == other.id()?)
    }

    /// True when the calling thread is in this namespace.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn is_current(&self) -> Result<bool, Error> {
        let own = fs::metadata(OWN).map_err(|e| Error::netns(Path::new(OWN), "identify", e))?;
        Ok(self.id()? == (own.dev(), own.ino()))
    }

    /// A second handle of the same namespace.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let file = self.file.try_clone().map_err(|e| Error::netns(&self.path, "open again", e))?;
        Ok(Self { file, path: self.path.clone() })
    }

    /// Runs a function inside the namespace, on a thread of its own, and waits for it. The calling
    /// thread never leaves its namespace. A panic of the function goes on in the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let result = std::thread::scope(|scope| {
            let inside = move || {
                self.set()?;
                Ok(f())
            };
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, inside)
                .map_err(|e| Error::netns(&self.path, "start a thread for", e))?;
            Ok(thread.join())
        })?;
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling thread into the namespace until the guard is dropped.
    ///
    /// # Errors
    /// When the namespace cannot be entered; the thread has not moved then.
    pub fn enter(&self) -> Result<Guard, Error> {
        let home = NetNs::current()?;
        self.set()?;
        Ok(Guard { home, stays_on_its_thread: PhantomData })
    }

    fn set(&self) -> Result<(), Error> {
        rustix::thread::move_into_link_name_space(
            self.file.as_fd(),
            Some(LinkNameSpaceType::Network),
        )
        .map_err(|e| Error::netns(&self.path, "enter", e))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Keeps its thread in another namespace; brings it home when dropped.
#[derive(Debug)]
pub struct Guard {
    home: NetNs,
    stays_on_its_thread: PhantomData<*const ()>,
}

impl Drop for Guard {
    /// # Panics
    /// When the way back is barred: a thread in the wrong namespace must not go on.
    fn drop(&mut self) {
        if let Err(e) = self.home.set() {
            panic!("cannot return to the own network namespace: {e}");
        }
    }
}

/// Makes a namespace that stays under a name until [`delete_named`], in the way of `ip netns add`,
/// so that `ip netns exec NAME` finds it: an empty file with the namespace mounted over it, in a
/// directory whose mounts other mount namespaces see.
///
/// # Errors
/// When the name is taken, or the system refuses the mount.
pub fn create_named(path: &Path) -> Result<NetNs, Error> {
    let fail = |what| move |e: io::Error| Error::netns(path, what, e);
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(fail("make the directory of"))?;
    share(dir).map_err(|e| fail("share the directory of")(e.into()))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o000)
        .open(path)
        .map_err(fail("make"))?;
    let made = std::thread::scope(|scope| scope.spawn(|| mount_new(path)).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    if let Err(e) = made {
        // The file alone would look like a namespace to everybody who lists names.
        let _ = fs::remove_file(path);
        return Err(fail("make")(e.into()));
    }
    NetNs::open(path)
}

/// Makes a namespace and mounts it; to be called on a thread that ends afterwards.
fn mount_new(path: &Path) -> Result<(), Errno> {
    unshare(UnshareFlags::NEWNET)?;
    rustix::mount::mount_bind(OWN, path)
}

/// Makes the mounts below a directory visible to other mount namespaces. A directory that is not
/// a mount point cannot carry that property: it is mounted over itself first. Two processes that
/// do so at the same time would stack two mounts, and one's namespaces would hide the other's,
/// so the directory is locked meanwhile.
fn share(dir: &Path) -> Result<(), Errno> {
    let lock = rustix::fs::open(
        dir,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match rustix::mount::mount_change(dir, shared) {
        Err(Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(dir, dir)?;
            rustix::mount::mount_change(dir, shared)
        }
        other => other,
    }
}

/// Removes a name given by [`create_named`]. The namespace itself goes when nothing holds it any
/// more. Succeeds when the name is gone already.
///
/// # Errors
/// When the system refuses to unmount or to remove the file.
pub fn delete_named(path: &Path) -> Result<(), Error> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // Not mounted, or not there: both are what is wanted.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(e) => return Err(Error::netns(path, "unmount", e)),
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::netns(path, "remove", e)),
        _ => Ok(()),
    }
}

/// Moves the calling thread, and all that it starts from now on, into a network and a mount
/// namespace of its own: mounts made from here on stay here, names of `ip netns` are its own, and
/// the loopback interface is up. For tests; to be called before anything else on a fresh thread.
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub fn unshare_for_test() -> Result<(), Error> {
    let fail = |what| move |e: Errno| Error::netns(Path::new(OWN), what, e);
    unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS).map_err(fail("leave"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(fail("keep mounts to"))?;
    fs::create_dir_all(NAMED_DIR).map_err(|e| Error::netns(Path::new(NAMED_DIR), "make", e))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("cw-netns", NAMED_DIR, "tmpfs", flags, c"mode=755")
        .map_err(fail("mount the names of"))?;
    loopback_up()
}

/// Moves the calling thread into a mount namespace of its own: mounts of others still arrive in it,
/// its own go nowhere. The process should have no other thread.
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub fn unshare_mounts() -> Result<(), Error> {
    let fail = |what| move |e: Errno| Error::netns(Path::new("/proc/self/ns/mnt"), what, e);
    unshare(UnshareFlags::NEWNS).map_err(fail("leave"))?;
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", downstream).map_err(fail("keep mounts to"))
}

/// Sets the loopback interface of the calling thread's namespace up, as every namespace wants it.
///
/// # Errors
/// When the kernel refuses.
pub fn loopback_up() -> Result<(), Error> {
    const RTM_NEWLINK: u16 = 16;
    const IFF_UP: u32 = 1;
    // struct ifinfomsg: family and type, index (lo is always 1), flags, mask of flags.
    let body = [0, 1, IFF_UP, IFF_UP].iter().flat_map(|n: &u32| n.to_ne_bytes()).collect();
    let mut socket = Socket::open(Bus::Route)?;
    for outcome in socket.transact(vec![Request::new(RTM_NEWLINK, REQUEST, body)])? {
        outcome.map_err(|refusal| Error::refused("set lo up", refusal))?;
    }
    Ok(())
}

/// Gives the calling thread namespaces of its own.
fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the table of file descriptors stays shared (no `FILES`), so no thread loses sight of
    // a descriptor that another one holds, which is the only danger of this call.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(flags)
    }
}
