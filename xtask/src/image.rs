//! `cargo xtask image`: the product image, in the nodes of the lab.

use std::process::ExitCode;

use clap::Args;
use liquid_lab::{Cache, Lab, LabName, ProductImage, Progress};

use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The lab whose nodes get the image, if it is up.
    #[arg(long = "lab", env = "LIQUID_LAB", default_value = "lab", value_name = "NAME")]
    lab: LabName,
    /// Cargo profile: dev builds faster, release runs faster.
    #[arg(long, default_value = "release", value_name = "PROFILE")]
    profile: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let image = ProductImage::build(&arguments.profile, &Cache::open()?, &progress)?;
    output::note(&format!("archive: {}", image.archive.display()));
    if Lab::all().contains(&arguments.lab) {
        let lab = Lab::open(&arguments.lab)?;
        let _step = progress.long("importing the image into the nodes");
        lab.import_image(&image.archive)?;
        output::note(&format!("lab {} has the image", arguments.lab));
    } else {
        output::note(&format!("lab {} is not up", arguments.lab));
    }
    output::result(&format!("{}\n", image.reference));
    Ok(ExitCode::SUCCESS)
}
