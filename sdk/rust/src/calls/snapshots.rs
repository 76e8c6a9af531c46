//! Snapshots of machines, and what goes on from them.

use crate::error::Result;
use crate::pages::Listing;
use crate::transport::Client;
use crate::types::{Operation, RestoreRequest, Snapshot, SnapshotCreate};

impl Client {
    /// Snapshots of a project.
    pub fn snapshot_list(&self, project: &str) -> Listing<Snapshot> {
        self.listing(&["v1", "projects", project, "snapshots"], &[])
    }

    /// One, by name.
    pub async fn snapshot_get(&self, project: &str, name: &str) -> Result<Snapshot> {
        self.get(&["v1", "projects", project, "snapshots", name], &[])
            .await
    }

    /// Takes one of a running machine; it exists when the operation is done.
    pub async fn snapshot_create(
        &self,
        project: &str,
        request: &SnapshotCreate,
    ) -> Result<Operation> {
        self.post(&["v1", "projects", project, "snapshots"], &[], request)
            .await
    }

    /// Deletes one that nothing stands on.
    pub async fn snapshot_delete(&self, project: &str, name: &str) -> Result<()> {
        self.delete(&["v1", "projects", project, "snapshots", name], &[])
            .await
    }

    /// Lets a machine that does not run go on from a snapshot of it.
    pub async fn vm_restore(&self, project: &str, name: &str, snapshot: &str) -> Result<Operation> {
        let request = RestoreRequest {
            snapshot: snapshot.to_owned(),
        };
        let path = ["v1", "projects", project, "vms", name, "restore"];
        self.post(&path, &[], &request).await
    }
}
