"""The pipeline's last task, whatever became of the others."""

from kfp import dsl

from components.launch.pipeline_step import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def clean_up(root: str, run: str) -> None:
    """Delete the jobs that a run has left behind: on Terminate, a step may have no time to delete its own.

    Args:
        root: The store: a folder or s3://bucket/prefix.
        run: Run id; its outputs lie below <root>/runs/<run>.
    """
    from components.launch.pipeline_step import clean_up_run

    clean_up_run(root, run)
