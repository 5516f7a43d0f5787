"""Run one step: as local processes today, behind a protocol that job operators will fill too. No torch and no kfp."""
