//! Build results kept outside the source tree, found again by the hash of everything that went into them.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ring::digest;

/// Characters of a key that become part of a path: 64 bits, far more than there will ever be entries.
const KEY_LENGTH: usize = 16;

/// What the names of unfinished entries begin with.
const BUILDING: &str = ".building-";

/// A directory of build results.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// The hash of a build's inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

/// Collects a build's inputs. Every part goes in with its name and length, so parts cannot run into each other.
pub(crate) struct KeyBuilder(digest::Context);

impl Cache {
    /// Opens the user's cache: `$LIQUID_CACHE`, else `$XDG_CACHE_HOME/liquid`, else `~/.cache/liquid`.
    ///
    /// # Errors
    /// If none of the three variables (nor `HOME`) is set.
    pub fn open() -> anyhow::Result<Self> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("LIQUID_CACHE")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("liquid")))
            .or_else(|| Some(set("HOME")?.join(".cache/liquid")))
            .context("no place for build results: set LIQUID_CACHE to a directory")?;
        Ok(Self::at(std::path::absolute(root)?))
    }

    /// Opens the cache in a directory of choice.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where everything is kept.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The finished entry, if there is one.
    #[must_use]
    pub fn find(&self, name: &str, key: &Key) -> Option<PathBuf> {
        let entry = self.root.join(name).join(&key.0);
        entry.is_dir().then_some(entry)
    }

    /// Returns the directory of an entry; when it is missing, `fill` gets an empty directory to build it in.
    ///
    /// An entry appears complete or not at all: it is built beside its place and renamed. A lock per name lets only
    /// one process build; the others wait and use its result. What a killed process left is removed by the next.
    ///
    /// # Errors
    /// Those of `fill`, and of the file system.
    pub fn entry(
        &self,
        name: &str,
        key: &Key,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        if let Some(entry) = self.find(name, key) {
            return Ok(entry);
        }
        let directory = self.root.join(name);
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let lock = File::create(directory.join(".lock")).context("cannot create a lock file in the cache")?;
        lock.lock().context("cannot lock the cache")?;
        if let Some(entry) = self.find(name, key) {
            return Ok(entry);
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(BUILDING) {
                remove_all(&entry.path())?;
            }
        }
        // With a name of its own: a compiler that outlived its killed parent must not write into this build.
        let building = directory.join(format!("{BUILDING}{}", std::process::id()));
        fs::create_dir(&building).with_context(|| format!("cannot create {}", building.display()))?;
        fill(&building)?;
        let entry = directory.join(&key.0);
        fs::rename(&building, &entry).with_context(|| format!("cannot publish {}", entry.display()))?;
        Ok(entry)
    }
}

impl Key {
    /// The key as it appears in paths and image tags.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl KeyBuilder {
    /// Starts with the name of what is built.
    #[must_use]
    pub(crate) fn new(what: &str) -> Self {
        Self(digest::Context::new(&digest::SHA256)).text("what", what)
    }

    /// Adds a value.
    #[must_use]
    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        self.bytes(name, value.as_bytes())
    }

    /// Adds the content of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn file(self, path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.bytes(&name, &content))
    }

    /// Adds all files directly in a directory that end in `suffix`, in the order of their names.
    ///
    /// # Errors
    /// If there are none, or one cannot be read.
    pub(crate) fn files(mut self, directory: &Path, suffix: &str) -> anyhow::Result<Self> {
        let entries =
            fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.to_string_lossy().ends_with(suffix));
        files.sort();
        if files.is_empty() {
            bail!("{} holds no file ending in {suffix}", directory.display());
        }
        for file in files {
            self = self.file(&file)?;
        }
        Ok(self)
    }

    /// The key of everything added.
    #[must_use]
    pub(crate) fn finish(self) -> Key {
        Key(hex(self.0.finish().as_ref()).chars().take(KEY_LENGTH).collect())
    }

    fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        for part in [name.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Removes a directory and all it holds; one that is not there is fine.
pub(crate) fn remove_all(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("liquid-cache-{name}-{}", std::process::id()));
            remove_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            remove_all(&self.0).unwrap();
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let one = KeyBuilder::new("x").text("ab", "c").finish();
        let other = KeyBuilder::new("x").text("a", "bc").finish();
        assert_ne!(one, other);
        assert_eq!(one, KeyBuilder::new("x").text("ab", "c").finish());
        assert_eq!(one.as_str().len(), KEY_LENGTH);
    }

    #[test]
    fn a_changed_file_changes_the_key() {
        let scratch = Scratch::new("key");
        fs::create_dir_all(&scratch.0).unwrap();
        let file = scratch.0.join("main.go");
        let key = || KeyBuilder::new("x").files(&scratch.0, ".go").unwrap().finish();
        fs::write(&file, "one").unwrap();
        let before = key();
        fs::write(scratch.0.join("notes.txt"), "not an input").unwrap();
        assert_eq!(before, key());
        fs::write(&file, "two").unwrap();
        assert_ne!(before, key());
    }

    #[test]
    fn a_failed_or_killed_build_leaves_no_entry_and_the_next_one_works() {
        let scratch = Scratch::new("killed");
        let (cache, key) = (Cache::at(scratch.0.clone()), KeyBuilder::new("x").finish());
        let failed = cache.entry("tool", &key, |directory| {
            fs::write(directory.join("half"), "").unwrap();
            bail!("killed")
        });
        assert!(failed.is_err() && cache.find("tool", &key).is_none());
        let entry = cache
            .entry("tool", &key, |directory| {
                assert!(!directory.join("half").exists());
                Ok(fs::write(directory.join("whole"), "")?)
            })
            .unwrap();
        assert!(entry.join("whole").exists());
    }

    #[test]
    fn of_two_at_once_only_one_builds() {
        let scratch = Scratch::new("twice");
        let (cache, key) = (Cache::at(scratch.0.clone()), KeyBuilder::new("x").finish());
        let built = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    cache
                        .entry("tool", &key, |_| {
                            built.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap()
                });
            }
        });
        assert_eq!(built.load(Ordering::SeqCst), 1);
    }
}
