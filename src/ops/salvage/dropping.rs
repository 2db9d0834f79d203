//! A lost tail is kept no longer.
//!
//! Decides nothing and removes no file: the region's process has its copies do it, and puts it on record first ([`crate::node::Node::drop_archive`]).

use super::as_json;
use crate::base::TimelineId;
use crate::ops::admin::{AdminAnswer, AdminRequest};
use crate::ops::client::Client;
use crate::ops::failure::{FAILED, Failure, REFUSED};
use crate::ops::orders::actor;
use std::path::Path;

/// Asks the region of `config`, and no other.
///
/// # Errors
/// When it does not run, or says no.
pub async fn drop_archive(config: &Path, id: TimelineId, json: bool, say: impl FnOnce(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    let client = Client::open(Some(config))?;
    match client.ask(&AdminRequest::DropArchive { archive: id, actor: actor(&client.asked) }).await? {
        AdminAnswer::Done(what) if json => say(&as_json(&serde_json::json!({ "ok": true, "archive": super::name(id), "what": what }))),
        AdminAnswer::Done(what) => say(&format!("{what}\n")),
        AdminAnswer::Refused(why) => Err(Failure::new(REFUSED, why)),
        _ => Err(Failure::new(FAILED, "the region answered something else than was asked; is it the same version of parhelion?")),
    }
}
