//! Saves of positions to rows.

use std::sync::Arc;

use super::super::positions::Row as StoredRow;
use super::super::requests::{Partition, Updated};
use super::super::saves::Saved;
use super::Kcl;
use super::row::{self, RowPosition};
use super::writes::parsed;
use crate::error::{ErrorKind, Result};
use crate::store::lease::FencedSave;

/// The attempts of one save. A KCL that renews the row changes it every few seconds.
const ATTEMPTS: u32 = 6;

impl<'a> Partition<'a> {
    /// Saves a position to the row that was read, if it has the expected position and, where an
    /// epoch is given, this fence.
    ///
    /// Each attempt is made only if the row still is as it was read, so a position that a KCL has
    /// saved since is not moved back.
    pub(in super::super) async fn save_row(
        &self,
        kcl: Kcl<'a>,
        save: &FencedSave,
        epoch: Option<&str>,
        mut seen: Option<StoredRow>,
    ) -> Result<Saved> {
        let beside = self.beside(kcl);
        let key = kcl.key(&save.shard);
        for _ in 0..ATTEMPTS {
            let row = seen.clone().unwrap_or_default();
            let before = row.item.as_ref().and_then(parsed);
            let is_latest =
                before.as_ref().is_some_and(|row| row.position() == RowPosition::Latest);
            let is_expected = row.text == save.expected || is_latest && save.expected.is_some();
            let is_fenced = epoch.is_none_or(|epoch| row.fence.as_deref() == Some(epoch));
            if !is_expected || !is_fenced || row.item.is_some() && before.is_none() {
                return Ok(Saved::Refused(row));
            }
            let after = match &before {
                // Ends the hold of a KCL that has taken the row. It may have stopped since.
                Some(before) if epoch.is_some() => before.saved(&save.text).reclaimed(),
                Some(before) => before.saved(&save.text),
                None => kcl.new_row(&save.shard, &save.text, None),
            };
            let change = row::write(row.item.as_ref(), Some(&after));
            let Updated::Refused(item) = beside.update(&key, &change).await? else {
                let holder = before.as_ref().filter(|_| epoch.is_some());
                if let Some(worker) = holder.and_then(|before| before.foreign_holder()) {
                    let (table, shard) = (beside.table, save.shard.as_str());
                    tracing::warn!(
                        table,
                        shard,
                        worker,
                        "lease taken back from a worker of a KCL, which delivers the same records; \
                         stop the KCL"
                    );
                }
                return Ok(Saved::Done);
            };
            // An earlier attempt without an answer has written this row.
            if item.as_ref().and_then(parsed).as_ref() == Some(&after) {
                return Ok(Saved::Done);
            }
            seen = match item.map(|item| kcl.read(&item)) {
                Some(read) => read?.map(|(_, row)| row),
                None => None,
            };
        }
        let what = format!("the lease of {} changes faster than it is written", save.shard);
        Err(kcl.error(ErrorKind::StoreUnavailable, &what))
    }
}

/// Returns true if a saved text is the end of a shard.
pub(in super::super) fn is_end(text: &Arc<str>) -> bool {
    **text == *super::reads::SHARD_END
}
