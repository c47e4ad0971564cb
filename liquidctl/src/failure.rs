//! How commands fail: bad input ends with exit code 2, everything else with 1.

use thiserror::Error;

/// Why a command did not do what was asked.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// What was asked cannot be done by anyone.
    #[error("{0}")]
    Input(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Input(_) => 2,
            Failure::Failed(_) => 1,
        }
    }

    /// Bad input.
    pub(crate) fn input(message: impl ToString) -> Self {
        Self::Input(message.to_string())
    }

    /// A failure.
    pub(crate) fn failed(message: impl ToString) -> Self {
        Self::Failed(message.to_string())
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_forbidden() => Self::failed(format!(
                "the API server forbids it: {}; use a kubeconfig with administrator rights",
                status.message
            )),
            kube::Error::Api(status)
                if status.is_not_found() && status.message.contains("could not find") =>
            {
                Self::failed("Liquid is not installed in this cluster: run `liquidctl install` first")
            }
            kube::Error::Api(status) if status.is_invalid() => Self::Input(status.message),
            kube::Error::Api(status) => Self::failed(format!("the API server says: {}", status.message)),
            other => Self::failed(format!("the API server cannot be reached: {other}")),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}
