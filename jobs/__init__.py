"""Plans, dispatch on Ray, the command line and its reports: everything above one worker.

The functions behind the commands are importable one by one, so that ``discernible --help`` stays free of torch and Ray:

    from discernible.jobs.conversion.spec import JobSpec
    from discernible.jobs.conversion.compress import compress
"""

from __future__ import annotations
