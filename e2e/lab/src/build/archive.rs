//! Container images written as `docker save` archives, byte for byte the same for the same content.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use ring::digest;
use serde_json::json;

use crate::build::cache::hex;

/// Read size while hashing.
const CHUNK: usize = 1 << 16;

/// One single-layer image to write.
#[derive(Debug, Default)]
pub(crate) struct Image<'a> {
    /// Reference it is imported under.
    pub(crate) reference: &'a str,
    /// What is in it.
    pub(crate) entries: Vec<Entry<'a>>,
    /// What runs when a pod names no command.
    pub(crate) entrypoint: Vec<&'a str>,
    /// Its arguments when a pod names none.
    pub(crate) arguments: Vec<&'a str>,
}

/// Something in an image, owned by root; paths are relative to its root.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    /// A directory with this mode.
    Directory(&'a str, u32),
    /// An executable copied from a file.
    Program(&'a str, &'a Path),
    /// A text file.
    Text(&'a str, &'a str),
    /// A symbolic link and its target.
    Link(String, &'a str),
}

impl Image<'_> {
    /// Writes the archive; needs room for the layer beside it while it does.
    pub(crate) fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let layer = archive.with_extension("layer");
        self.write_layer(&layer).with_context(|| format!("cannot write the layer of {}", self.reference))?;
        let diff = sha256(&layer)?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff}")] },
        })
        .to_string();
        let config_name =
            format!("{}.json", hex(digest::digest(&digest::SHA256, config.as_bytes()).as_ref()));
        let layer_name = format!("{diff}/layer.tar");
        let manifest =
            json!([{ "Config": config_name, "RepoTags": [self.reference], "Layers": [layer_name] }])
                .to_string();

        let mut tar = tar::Builder::new(File::create(archive)?);
        append(&mut tar, "manifest.json", 0o644, manifest.as_bytes())?;
        append(&mut tar, &config_name, 0o644, config.as_bytes())?;
        append_file(&mut tar, &layer_name, 0o644, &layer)?;
        tar.into_inner().and_then(|file| file.sync_all()).context("cannot finish an image archive")?;
        fs::remove_file(&layer)?;
        Ok(())
    }

    fn write_layer(&self, path: &Path) -> io::Result<()> {
        let mut tar = tar::Builder::new(File::create(path)?);
        for entry in &self.entries {
            match entry {
                Entry::Directory(name, mode) => {
                    let mut header = header(tar::EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, format!("{name}/"), io::empty())?;
                }
                Entry::Program(name, source) => append_file(&mut tar, name, 0o755, source)?,
                Entry::Text(name, text) => append(&mut tar, name, 0o644, text.as_bytes())?,
                Entry::Link(name, target) => {
                    tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), name, target)?;
                }
            }
        }
        tar.finish()
    }
}

/// The architecture of this machine in the words of the image specification.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn append(tar: &mut tar::Builder<File>, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(tar::EntryType::Regular, mode, content.len() as u64), name, content)
}

fn append_file(tar: &mut tar::Builder<File>, name: &str, mode: u32, source: &Path) -> io::Result<()> {
    let file = File::open(source)?;
    let size = file.metadata()?.len();
    tar.append_data(&mut header(tar::EntryType::Regular, mode, size), name, BufReader::new(file))
}

/// Times and owners are fixed: the archive depends on nothing but its content.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// The hash of a file, as hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(context.finish().as_ref())),
            read => context.update(&chunk[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_its_image_and_hashes_its_layer() {
        let path = std::env::temp_dir().join(format!("liquid-archive-{}.tar", std::process::id()));
        let image = Image {
            reference: "lab.local/test:1",
            entries: vec![
                Entry::Directory("tmp", 0o1777),
                Entry::Text("etc/hello", "hello\n"),
                Entry::Link("bin/sh".to_owned(), "busybox"),
            ],
            entrypoint: vec!["/hello"],
            arguments: Vec::new(),
        };
        image.write(&path).unwrap();
        let first = fs::read(&path).unwrap();
        image.write(&path).unwrap();
        assert_eq!(first, fs::read(&path).unwrap(), "the same content gave another archive");
        fs::remove_file(&path).unwrap();

        let mut parts = std::collections::BTreeMap::new();
        let mut outer = tar::Archive::new(first.as_slice());
        for entry in outer.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            parts.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&parts["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "lab.local/test:1");
        let config: serde_json::Value =
            serde_json::from_slice(&parts[manifest[0]["Config"].as_str().unwrap()]).unwrap();
        let layer = &parts[manifest[0]["Layers"][0].as_str().unwrap()];
        let hash = hex(digest::digest(&digest::SHA256, layer).as_ref());
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{hash}"));
        let mut inner = tar::Archive::new(layer.as_slice());
        let names: Vec<String> = inner
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["tmp/", "etc/hello", "bin/sh"]);
    }
}
