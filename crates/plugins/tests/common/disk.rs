//! File systems that are full or read-only.
#![allow(dead_code, unreachable_pub)]

use std::fs;

use super::sh;

/// What a file system can run out of.
#[derive(Clone, Copy, Debug)]
pub enum Out {
    Inodes,
    Bytes,
}

impl Out {
    /// How a message calls it.
    pub fn cause(self) -> &'static str {
        match self {
            Out::Inodes => "inodes",
            Out::Bytes => "free space",
        }
    }
}

/// Leaves so much room on the file system of a directory, which is a tmpfs of its own.
pub fn leave(dir: &str, out: Out, room: u64) {
    let stat = rustix::fs::statvfs(dir).unwrap();
    let limit = match out {
        // No limit at all is written as 0.
        Out::Inodes => format!("nr_inodes={}", stat.f_files - stat.f_ffree + room),
        Out::Bytes => format!("size={}", (stat.f_blocks - stat.f_bfree + room) * stat.f_frsize),
    };
    sh(&format!("mount -o remount,{limit} {dir}"));
}

/// Leaves no room at all.
pub fn fill(dir: &str) {
    leave(dir, Out::Inodes, 0);
    leave(dir, Out::Bytes, 0);
}

/// An empty disk with room for all.
pub fn new_disk(dir: &str) {
    fs::create_dir_all(dir).unwrap();
    let _ = rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH);
    sh(&format!("mount -t tmpfs -o size=16m,nr_inodes=4096 tmpfs {dir}"));
    // So that it takes up a page: a limit of none would be no limit.
    fs::write(format!("{dir}/ballast"), "x").unwrap();
}

/// Makes a disk read-only (`ro`) or writable (`rw`).
pub fn switch(dir: &str, how: &str) {
    sh(&format!("mount -o remount,{how} {dir}"));
}
