//! With what a check begins its TLS handshakes: kept from check to check, and made anew when the file of authorities changes.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use towpath_config::model::TlsCheck;
use towpath_tls::{
    CipherPolicy, ClientContext, ClientSettings, MinVersion, Provider, ServerVerification, load_authorities,
};

/// What one check needs for TLS.
#[derive(Default)]
pub(crate) struct Trust {
    made: Option<Made>,
}

struct Made {
    context: Arc<ClientContext>,
    /// When the authorities were last written; of a check that needs none, `None`.
    written: Option<SystemTime>,
}

impl Trust {
    /// The context, as the files are now; an error in the words of an operator.
    pub(super) fn context(&mut self, check: &TlsCheck) -> Result<Arc<ClientContext>, String> {
        let written = check.authorities.as_deref().map(written).transpose()?;
        if let Some(made) = self.made.as_ref().filter(|made| made.written == written) {
            return Ok(Arc::clone(&made.context));
        }
        self.made = None;
        let verification = match &check.authorities {
            Some(path) => {
                ServerVerification::Authorities(load_authorities(path).map_err(|error| format!("health.ca: {error}"))?)
            }
            None => ServerVerification::None,
        };
        let settings = ClientSettings {
            provider: Provider::default(),
            min_version: MinVersion::Tls12,
            ciphers: CipherPolicy::Intermediate,
            post_quantum: false,
            verification,
            server_name: check.name.clone(),
            identity: None,
            // A check asks whether the server can make a whole handshake.
            sessions_max: 0,
        };
        let context = ClientContext::new(&settings, None).map_err(|error| format!("health.ca: {error}"))?;
        let context = Arc::new(context);
        self.made = Some(Made { context: Arc::clone(&context), written });
        Ok(context)
    }
}

fn written(path: &Path) -> Result<SystemTime, String> {
    let told = |error: std::io::Error| format!("health.ca: {}: {}", path.display(), super::words(&error));
    std::fs::metadata(path).and_then(|file| file.modified()).map_err(told)
}
