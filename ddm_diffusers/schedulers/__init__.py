from .scheduling_ddm import DDMScheduler, DDMSchedulerOutput
