//! An OCI image archive (image layout 1.0.0 in a tar), made and read without a container engine.
//!
//! The same files and the same time give the same bytes: entries are sorted, everything belongs to
//! root, and nothing is taken from the machine that builds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What one entry of the image is.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A directory, mode 0755.
    Dir,
    /// A program, mode 0755.
    Program(Vec<u8>),
    /// A symbolic link.
    Link(String),
}

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Image {
    /// Path inside the image, without a leading slash.
    pub entries: BTreeMap<String, Entry>,
    /// GOARCH: amd64, arm64.
    pub arch: String,
    /// What runs without other words.
    pub entrypoint: String,
    /// The full name, such as `docker.io/library/causeway:0.1.0`.
    pub name: String,
    /// Labels of the configuration, annotations of the manifest.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970: the time of every file and of the image.
    pub time: u64,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The tar.
    pub bytes: Vec<u8>,
    /// Digest of the manifest: what registries and runtimes call the image.
    pub digest: String,
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Image {
    /// Makes the archive.
    ///
    /// # Errors
    /// When an entry has a name that a tar cannot hold.
    pub fn build(&self) -> Result<Archive> {
        let layer = self.layer()?;
        let diff_id = digest(&layer);
        let packed = gzip(&layer)?;
        let created = rfc3339(self.time);
        let config = serde_json::to_vec(&json!({
            "created": created,
            "architecture": self.arch,
            "os": "linux",
            "config": {"Entrypoint": [self.entrypoint], "Labels": self.labels, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "xtask image"}],
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &packed)],
            "annotations": self.labels,
        }))?;
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let mut main = descriptor(MANIFEST, &manifest);
        main["platform"] = json!({"architecture": self.arch, "os": "linux"});
        // The first is what containerd takes the name from, the second the specification's own.
        main["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = serde_json::to_vec(
            &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [main]}),
        )?;
        let blob = |bytes: &[u8]| format!("blobs/sha256/{}", hex(bytes));
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let image_digest = digest(&manifest);
        for bytes in [config, manifest, packed] {
            files.insert(blob(&bytes), bytes);
        }
        files.insert("index.json".to_owned(), index);
        files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        Ok(Archive { bytes: self.outer(&files)?, digest: image_digest })
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = self.header();
            match entry {
                Entry::Dir => {
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Entry::Program(bytes) => {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, bytes.as_slice())?;
                }
                Entry::Link(to) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, to)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }

    fn outer(&self, files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for dir in ["blobs/", "blobs/sha256/"] {
            let mut header = self.header();
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, dir, std::io::empty())?;
        }
        for (path, bytes) in files {
            let mut header = self.header();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes.as_slice())?;
        }
        Ok(tar.into_inner()?)
    }

    /// Root's, mode 0755, of the image's time, nothing in it.
    fn header(&self) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        header.set_size(0);
        header
    }
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    // No time, no name, and an operating system of its own number (255, unknown).
    let mut gz =
        GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    gz.write_all(bytes)?;
    Ok(gz.finish()?)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// SHA-256 in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

/// A time in UTC as RFC 3339 writes it (civil-from-days, proleptic Gregorian calendar).
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, late) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!(
        "{:04}-{month:02}-{of_month:02}T{:02}:{:02}:{:02}Z",
        era * 400 + year + late,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// What an archive says of itself, after every digest and size in it was found right.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Digest of the manifest.
    pub digest: String,
    /// The image's configuration.
    pub config: Value,
    /// `index.json`.
    pub index: Value,
    /// Of each entry of the layer: path, kind, mode, user, group, time.
    pub layer: Vec<(String, tar::EntryType, u32, u64, u64, u64)>,
    /// Files of the layer by path.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// Reads an archive and checks it.
///
/// # Errors
/// When anything in it is not as its descriptor says, or nothing leads to it.
pub fn read(bytes: &[u8]) -> Result<Contents> {
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let path = entry.path()?.to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            ensure!(blobs.insert(path.clone(), content).is_none(), "{path} is there twice");
        }
    }
    let layout = blobs.remove("oci-layout").context("no oci-layout")?;
    let layout: Value = serde_json::from_slice(&layout)?;
    ensure!(layout["imageLayoutVersion"] == "1.0.0", "layout {layout}");
    let index: Value =
        serde_json::from_slice(&blobs.remove("index.json").context("no index.json")?)?;
    let mut seen = BTreeSet::new();
    let [main] = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default() else {
        bail!("index.json: not one manifest: {index}");
    };
    let manifest: Value = serde_json::from_slice(&blob(&blobs, main, &mut seen)?)?;
    let config: Value = serde_json::from_slice(&blob(&blobs, &manifest["config"], &mut seen)?)?;
    let [layer] = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default() else {
        bail!("not one layer: {manifest}");
    };
    let packed = blob(&blobs, layer, &mut seen)?;
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain)?;
    ensure!(config["rootfs"]["diff_ids"] == json!([digest(&plain)]), "diff_ids: {config}");
    let stray: Vec<&String> = blobs.keys().filter(|path| !seen.contains(*path)).collect();
    ensure!(stray.is_empty(), "nothing leads to {stray:?}");
    let (mut entries, mut files) = (Vec::new(), BTreeMap::new());
    for entry in tar::Archive::new(plain.as_slice()).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let header = entry.header().clone();
        let kind = header.entry_type();
        let of = (header.mode()?, header.uid()?, header.gid()?, header.mtime()?);
        entries.push((path.clone(), kind, of.0, of.1, of.2, of.3));
        if kind.is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(path, content);
        }
    }
    let digest = main["digest"].as_str().unwrap_or_default().to_owned();
    Ok(Contents { digest, config, index, layer: entries, files })
}

/// The blob of a descriptor.
fn blob(
    blobs: &BTreeMap<String, Vec<u8>>,
    descriptor: &Value,
    seen: &mut BTreeSet<String>,
) -> Result<Vec<u8>> {
    let wanted = descriptor["digest"].as_str().and_then(|d| d.strip_prefix("sha256:"));
    let wanted = wanted.with_context(|| format!("no digest in {descriptor}"))?;
    let path = format!("blobs/sha256/{wanted}");
    let bytes = blobs.get(&path).with_context(|| format!("{path} is missing"))?;
    ensure!(descriptor["size"] == bytes.len(), "{path} has {} bytes: {descriptor}", bytes.len());
    ensure!(hex(bytes) == wanted, "{path} is not what its name says");
    seen.insert(path);
    Ok(bytes.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
