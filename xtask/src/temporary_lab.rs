//! A lab that is taken down whatever happens.

use liquid_lab::{LabName, Progress};

use crate::output;

/// The name of a lab that is taken down when this is dropped, also by a panic.
#[derive(Debug)]
pub(crate) struct TemporaryLab {
    name: LabName,
    gone: bool,
}

impl TemporaryLab {
    /// Makes sure that there is no lab of this name, perhaps left by a run that was killed.
    pub(crate) fn new(name: &LabName) -> anyhow::Result<Self> {
        liquid_lab::down(name, &Progress::new())?;
        Ok(Self { name: name.clone(), gone: false })
    }

    /// Takes it down, and tells whether that worked.
    pub(crate) fn down(mut self) -> anyhow::Result<()> {
        self.gone = true;
        liquid_lab::down(&self.name, &Progress::new()).map(drop)
    }
}

impl Drop for TemporaryLab {
    fn drop(&mut self) {
        if !self.gone
            && let Err(error) = liquid_lab::down(&self.name, &Progress::new())
        {
            output::error(&error);
        }
    }
}
