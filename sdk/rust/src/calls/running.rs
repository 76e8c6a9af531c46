//! Machines while they run: paused, reset, looked at, given more or less.

use reqwest::Method;

use crate::error::Result;
use crate::transport::Client;
use crate::types::{DiskResize, MemoryTarget, Operation, Vm, VmStats};

impl Client {
    /// Pauses one until it is resumed.
    pub async fn vm_pause(&self, project: &str, name: &str) -> Result<Operation> {
        let path = ["v1", "projects", project, "vms", name, "pause"];
        self.object(self.call(Method::POST, &path, &[])).await
    }

    /// Lets a paused one go on.
    pub async fn vm_resume(&self, project: &str, name: &str) -> Result<Operation> {
        let path = ["v1", "projects", project, "vms", name, "resume"];
        self.object(self.call(Method::POST, &path, &[])).await
    }

    /// Resets one, as a reset button does.
    pub async fn vm_reset(&self, project: &str, name: &str) -> Result<Operation> {
        let path = ["v1", "projects", project, "vms", name, "reset"];
        self.object(self.call(Method::POST, &path, &[])).await
    }

    /// What a running one has done since its process was started.
    pub async fn vm_stats(&self, project: &str, name: &str) -> Result<VmStats> {
        self.get(&["v1", "projects", project, "vms", name, "stats"], &[])
            .await
    }

    /// Asks one's guest to make do with so much memory.
    pub async fn vm_memory(&self, project: &str, name: &str, target_bytes: u64) -> Result<Vm> {
        let path = ["v1", "projects", project, "vms", name, "memory"];
        self.put(&path, &MemoryTarget { target_bytes }).await
    }

    /// Makes one of its disks longer.
    pub async fn vm_disk_resize(
        &self,
        project: &str,
        name: &str,
        disk: &str,
        size_bytes: u64,
    ) -> Result<Vm> {
        let path = ["v1", "projects", project, "vms", name, "disks", disk];
        self.put(&path, &DiskResize { size_bytes }).await
    }
}
