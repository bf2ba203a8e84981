//! What a reload stands on, read before its turn and apart from the controller's thread: a file system or a machine that takes its time to answer holds
//! up neither a health check nor who wants the truth.

use std::io;
use std::sync::Arc;

use towpath_config::model::Model;
use towpath_core::http::HttpMaterial;

use crate::control::Access;
use crate::engine::ReloadError;
use crate::house::House;
use crate::http_files;
use crate::packets::facing::resolve;
use crate::preflight::HostFacts;
use crate::tls::TlsMaterial;

/// A model with what its files and the machine say.
pub(crate) struct Read {
    /// With the addresses that the machine has for it.
    pub(crate) model: Model,
    /// The machine.
    pub(crate) facts: io::Result<HostFacts>,
    /// What the model's files say. What is wrong with them is told last: preflight says it with its place.
    pub(crate) files: Result<Files, ReloadError>,
}

/// What a model names and the reload reads.
pub(crate) struct Files {
    pub(crate) tls: TlsMaterial,
    pub(crate) http: HttpMaterial,
    pub(crate) control: Option<Access>,
}

impl Read {
    /// Reads what `model` needs if it comes after the one in force, on the calling thread. Nobody waits for the truth meanwhile.
    pub(crate) fn now(house: &House, model: Model) -> Read {
        let before = house.truth().model().clone();
        let model = resolve(model, Some(&before));
        Read { facts: HostFacts::gather(&model), files: Files::read(house, &model), model }
    }
}

impl Files {
    fn read(house: &House, model: &Model) -> Result<Files, ReloadError> {
        let (before, secret) = {
            let truth = house.truth();
            (Arc::clone(truth.material()), truth.http_secret())
        };
        let tls = TlsMaterial::load(model, &before).map_err(ReloadError::Tls)?;
        let http = http_files::load(model, secret).map_err(ReloadError::Http)?;
        let control = Access::load(model).map_err(ReloadError::Control)?;
        Ok(Files { tls, http, control })
    }
}
