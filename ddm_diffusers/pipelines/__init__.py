from .pipeline_ddm import DDMPipeline
