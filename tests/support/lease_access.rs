//! Calls of workers and operators to a lease store, each with the knowledge of a new worker.

use std::sync::Arc;

use kinestream::Result;
use kinestream::store::Scope;
use kinestream::store::lease::{
    AdminEdit, EditOutcome, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, IfLeased,
    LeaseStore, LeaseTable, Leases, SaveOutcome,
};

#[allow(dead_code, reason = "not every test uses every call")]
pub(crate) trait LeaseAccess: LeaseStore + Clone {
    fn leases_of(&self, scope: &Scope) -> Leases {
        Leases::new(Arc::new(self.clone()), scope.clone())
    }

    async fn table(&self, scope: &Scope) -> Result<LeaseTable> {
        self.leases_of(scope).table().await
    }

    async fn heartbeat(
        &self,
        scope: &Scope,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse> {
        self.leases_of(scope).exchange(request).await
    }

    async fn save_positions(
        &self,
        scope: &Scope,
        positions: &[FencedCheckpoint],
    ) -> Result<Vec<SaveOutcome>> {
        self.leases_of(scope).save_fenced(positions).await
    }

    async fn edit(
        &self,
        scope: &Scope,
        edit: &AdminEdit,
        if_leased: IfLeased,
    ) -> Result<EditOutcome> {
        self.leases_of(scope).edit(edit, if_leased).await
    }
}

impl<S: LeaseStore + Clone> LeaseAccess for S {}
