//! The image of the DaemonSet: the same bytes wherever it is made, and what is in it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use xtask::oci::{self, Image};
use xtask::{chart, image};

/// The beginning of a program: ELF, 64 bits, for a machine, with one program header of a kind.
fn elf(machine: u16, kind: u32) -> Vec<u8> {
    let mut bytes = vec![0u8; 64];
    bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend([0; 52]);
    bytes
}

fn small(arch: &str, time: u64) -> Image {
    let programs = image::PROGRAMS.map(|name| (name.to_owned(), name.as_bytes().to_vec()));
    image::image(programs.into(), arch, "1.2.3", time)
}

/// Where the programs are that a test takes: as the others', by the variable that `./dev test` sets.
fn dist() -> PathBuf {
    match std::env::var_os("CAUSEWAY_BIN").map(PathBuf::from) {
        Some(program) => program.parent().unwrap().to_owned(),
        None => chart::root().join("target/dist"),
    }
}

#[test]
fn everything_in_it_is_as_it_says() {
    let archive = small("arm64", 1_700_000_000).build().unwrap();
    let read = oci::read(&archive.bytes).unwrap();
    assert_eq!(read.digest, archive.digest);
    assert_eq!(read.config["architecture"], "arm64");
    assert_eq!(read.config["os"], "linux");
    assert_eq!(read.config["config"]["Entrypoint"], json!(["/causeway"]));
    assert_eq!(read.config["created"], "2023-11-14T22:13:20Z");
    assert_eq!(read.config["config"]["Labels"]["org.opencontainers.image.version"], "1.2.3");
    let named = &read.index["manifests"][0]["annotations"];
    assert_eq!(named["io.containerd.image.name"], "docker.io/library/causeway:1.2.3");
    assert_eq!(named["org.opencontainers.image.ref.name"], "1.2.3");
    assert_eq!(read.files.len(), 2);
    for name in image::PROGRAMS {
        assert_eq!(read.files[name], name.as_bytes());
    }
    let paths: Vec<&str> = read.layer.iter().map(|e| e.0.trim_end_matches('/')).collect();
    let mut sorted = paths.clone();
    sorted.sort_unstable();
    assert_eq!(paths, sorted);
    for (path, kind, mode, uid, gid, time) in &read.layer {
        assert_eq!((*uid, *gid, *time), (0, 0, 1_700_000_000), "{path}");
        let link = *kind == tar::EntryType::Symlink;
        assert_eq!(*mode, if link { 0o777 } else { 0o755 }, "{path}");
        assert_eq!(link, path == "var/run", "{path}");
    }
}

#[test]
fn the_same_files_and_time_make_the_same_image() {
    let digest = |arch, time| small(arch, time).build().unwrap().digest;
    assert_eq!(small("amd64", 5).build().unwrap().bytes, small("amd64", 5).build().unwrap().bytes);
    assert_ne!(digest("amd64", 5), digest("amd64", 6));
    assert_ne!(digest("amd64", 5), digest("arm64", 5));
}

/// Every byte of an archive is covered by a digest, a size or a form that is checked.
#[test]
fn a_damaged_archive_is_refused() {
    let archive = small("amd64", 0).build().unwrap();
    oci::read(&archive.bytes).unwrap();
    let (mut refused, mut tried) = (0, 0);
    // One byte in the middle of each block that is not padding.
    for (n, block) in archive.bytes.chunks(512).enumerate() {
        if block.iter().all(|b| *b == 0) {
            continue;
        }
        let mut bytes = archive.bytes.clone();
        bytes[n * 512 + block.iter().position(|b| *b != 0).unwrap()] ^= 0x20;
        tried += 1;
        refused += u32::from(oci::read(&bytes).is_err());
    }
    assert_eq!(refused, tried);
    let without = |name: &str| {
        let mut out = tar::Builder::new(Vec::new());
        for entry in tar::Archive::new(archive.bytes.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            if path != name {
                out.append(&entry.header().clone(), entry).unwrap();
            }
        }
        oci::read(&out.into_inner().unwrap()).expect_err(name).to_string()
    };
    assert!(without("index.json").contains("index.json"));
    assert!(without("oci-layout").contains("oci-layout"));
    let manifest = archive.digest.replace("sha256:", "blobs/sha256/");
    assert!(without(&manifest).contains(&manifest));
}

#[test]
fn programs_that_would_not_run_are_refused() {
    let error = |bytes: &[u8], arch| image::check_program(bytes, arch).unwrap_err().to_string();
    image::check_program(&elf(62, 1), "amd64").unwrap();
    image::check_program(&elf(183, 1), "arm64").unwrap();
    assert!(error(&elf(62, 1), "arm64").contains("machine 62"));
    assert!(error(&elf(62, 3), "amd64").contains("dynamic loader"));
    assert!(error(b"#!/bin/sh\n", "amd64").contains("not an ELF"));
    assert!(error(&elf(62, 1), "riscv64").contains("riscv64"));
    assert!(error(&elf(62, 1)[..50], "amd64").contains("cut off"));
}

#[test]
fn paths_of_the_machine_and_large_archives_are_refused() {
    let paths = ["/some/where/".to_owned()];
    image::check_paths(b"xx/some/wher", &paths).unwrap();
    image::check_paths(b"//some/wherx/", &paths).unwrap();
    let error = image::check_paths(b"x//some/where/src/a.rs", &paths).unwrap_err();
    assert!(error.to_string().contains("/some/where/"));
    image::check_size(image::LIMIT).unwrap();
    assert!(image::check_size(image::LIMIT + 1).is_err());
}

/// The programs as they are built: statically, without a path of this machine, and small enough.
#[test]
fn the_image_of_the_programs_that_are_built() {
    let root = chart::root();
    let made = |dist: &std::path::Path| {
        let programs: BTreeMap<_, _> = image::programs(&root, "amd64", dist).unwrap();
        image::image(programs, "amd64", "0.0.0", 1_700_000_000).build().unwrap()
    };
    let first = made(&dist());
    image::check_size(first.bytes.len()).unwrap();
    let read = oci::read(&first.bytes).unwrap();
    assert_eq!(read.digest, first.digest);
    // The same from elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    for name in image::PROGRAMS {
        std::fs::copy(dist().join(name), elsewhere.path().join(name)).unwrap();
        assert_eq!(read.files[name], std::fs::read(dist().join(name)).unwrap());
    }
    assert_eq!(made(elsewhere.path()).digest, first.digest);
}
